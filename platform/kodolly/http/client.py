"""The HTTP client for calls that answer whole, and for the controller's watch stream.

Streams of tokens go through `kodolly.http.upstream`, which costs less a token.
"""

from __future__ import annotations

import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx

from kodolly.http.log_safe import describe_error
from kodolly.http.tls import client_context

# Seconds that an idle connection is kept; uvicorn's servers close theirs after 5 s.
KEEPALIVE = 4.0
DEFAULT_TIMEOUT = 10.0  # seconds for each step of a call that names no timeout of its own

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


async def read_at_most(response: httpx.Response, limit: int) -> bytes:
    """The whole body of a response that is streamed. Raises ValueError beyond `limit` bytes."""
    body = bytearray()
    async for chunk in response.aiter_bytes():
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
