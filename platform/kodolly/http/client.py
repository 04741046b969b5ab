"""The HTTP client for calls that answer whole, and for the controller's watch stream.

Streams of tokens go through `kodolly.http.upstream`, which costs less a token.
"""

from __future__ import annotations

import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from kodolly.http.tls import client_context
from kodolly.log_safe import describe_error

# Seconds that an idle connection is kept; uvicorn's servers close theirs after 5 s.
KEEPALIVE = 4.0
DEFAULT_TIMEOUT = 10.0  # seconds for each step of a call that names no timeout of its own

# Bytes of an answer that only says how something is: a status, a heartbeat's answer, a list of models.
MAX_STATUS = 4 * 2**20
MAX_REDIRECTS = 5

# What a call may raise besides an answer. Not every one is an httpx.HTTPError.
CALL_ERRORS = (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError)


def new_client(tls: ssl.SSLContext | None = None) -> httpx.AsyncClient:
    """A client for one process, to be closed by `aclose`. It may be made before the event loop runs.

    It keeps any number of connections and takes no proxies from the environment, no cookies and no
    redirects: it calls our own processes. `tls`: whom it trusts (default: the machine's authorities).
    """
    return httpx.AsyncClient(
        verify=tls or client_context(),
        trust_env=False,
        headers={"Accept-Encoding": "identity"},
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        timeout=DEFAULT_TIMEOUT,
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE
        ),
    )


async def request_bounded(
    client: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    limit: int = MAX_STATUS,
    follow_redirects: bool = False,
    **options: Any,
) -> tuple[int, bytes]:
    """The status and body of an answer whose body has at most `limit` bytes. Raises CALL_ERRORS.

    `options`: of `client.build_request`. The body is not decompressed: we ask for none that is.
    """
    request = client.build_request(method, url, **options)
    for _ in range(MAX_REDIRECTS + 1):  # by hand: httpx reads the bodies of redirects whole
        response = await client.send(request, stream=True)
        try:
            body = await read_bounded(response, limit)
        finally:
            await response.aclose()
        if not follow_redirects or response.next_request is None:
            return response.status_code, body
        request = response.next_request
    raise ValueError(f"more than {MAX_REDIRECTS} redirects")


async def read_bounded(response: httpx.Response, limit: int) -> bytes:
    """The whole body of a streamed answer. Raises ValueError beyond `limit` bytes, before the rest is read."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            raise ValueError(f"the answer has more than {limit} bytes")
    return bytes(body)


def describe_call_error(error: BaseException) -> str:
    """As `describe_error`, with the operating system's reason, such as a refused connection.

    httpx itself says only that all attempts failed.
    """
    cause = error
    while (inner := _inner(cause)) is not None:
        cause = inner
    if isinstance(error, httpx.ConnectError) and isinstance(cause, OSError) and cause.errno:
        return f"{type(error).__name__}: {describe_error(cause)}"
    return describe_error(error)


def _inner(error: BaseException) -> BaseException | None:
    """The error that `error` wraps; of several failed attempts, the first."""
    if isinstance(error, BaseExceptionGroup):
        return error.exceptions[0]
    wrapped = (each for each in error.args if isinstance(each, BaseException))
    return error.__cause__ or next(wrapped, None)
