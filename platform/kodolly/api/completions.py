"""POST /v1/chat/completions and /v1/completions: check the request, have it answered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kodolly.api.auth import KeyRing
from kodolly.api.client_output import ClientOutput, ClientStalled
from kodolly.api.relay.client_stream import ClientStream
from kodolly.api.request import ApiRequest
from kodolly.api.runner import INTERNAL_ERROR, CompletionRunner
from kodolly.errors import ApiError
from kodolly.http import bodies, server
from kodolly.observe.observer import Observer
from kodolly.observe.requests import outcome_of
from kodolly.protocol.openai import ChatRequest, CompletionRequest, check, without_nulls
from kodolly.protocol.request_bounds import check_bounds

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class EndpointServices:
    """What every endpoint that has models answer uses.

    `max_body` in bytes; `client_timeout` in seconds (see ClientOutput).
    """

    keys: KeyRing
    runner: CompletionRunner
    max_body: int
    client_timeout: float
    body_turns: bodies.BodyTurns
    observer: Observer = field(default_factory=Observer)


class Endpoint:
    """An ASGI endpoint that answers whole or by a stream, and replies to failures itself."""

    def __init__(self, services: EndpointServices) -> None:
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        http_request = Request(scope, receive)
        request_id = request_id_of(http_request)
        chunk = scope["extensions"]["kodolly.chunk"]
        output = ClientOutput(send, request_id, self._services.client_timeout, chunk)
        status = 0
        try:
            response = await self._respond(http_request, output)
        except ClientStalled as error:
            log.warning("%s: %s: it is given up", request_id, error)
            self._note(scope, output, 200, error)
            return await hang_up(http_request)
        except ApiError as error:
            response = await self._refusal(http_request, error, request_id)
            self._note(scope, output, response.status_code, error)
            return await response(scope, receive, send)
        except (
            Exception
        ) as error:  # our own fault: the client gets no details, and the server logs it
            self._note(scope, output, 200 if output.has_started else 500, error)
            if not output.has_started:
                failure = ApiError(INTERNAL_ERROR)
                response = await self._refusal(http_request, failure, request_id)
                await response(scope, receive, send)
            raise
        if response is not None:
            status = response.status_code
            await response(scope, receive, send)
        self._note(scope, output, status or (200 if output.has_started else 0))

    def _note(
        self, scope: Scope, output: ClientOutput, status: int, error: Exception | None = None
    ) -> None:
        """Counts and logs a request that has ended. `status` 0: its client went before an answer began."""
        services, measurement = self._services, output.measurement
        if isinstance(error, ApiError):
            services.runner.metrics.refuse(error)
        if not measurement.entered and error is not None:  # it never came to the models
            measurement.outcome = outcome_of(error)
            services.runner.metrics.add(measurement)
        if (access_log := services.observer.log) is not None:
            path = scope["path"]
            access_log.write(scope["method"], path, status, output.request_id, measurement)

    async def _respond(self, http_request: Request, output: ClientOutput) -> Response | None:
        """The answer to be sent; None once it was streamed, or when its client has gone."""
        raise NotImplementedError

    async def _refusal(self, http_request: Request, error: ApiError, request_id: str) -> Response:
        """The response for an error before the answer began."""
        return await error_response(http_request, error, request_id)

    async def _read_object(self, http_request: Request) -> tuple[dict[str, Any], int]:
        """The JSON object in the body, without its nulls, and the bytes of the body."""
        services = self._services
        body, size = await bodies.read_sized_object(
            http_request, services.max_body, services.body_turns
        )
        return without_nulls(body), size


class Completions(Endpoint):
    """One of the two paths."""

    def __init__(
        self,
        kind: type[ChatRequest | CompletionRequest],
        path: str,
        services: EndpointServices,
    ) -> None:
        super().__init__(services)
        self._kind = kind
        self._path = path

    async def _respond(self, http_request: Request, output: ClientOutput) -> Response | None:
        scope = http_request.scope
        headers = dict(scope["headers"])
        key = self._services.keys.admit(headers.get(b"authorization", b"").decode("latin-1"))
        request = await self._read(http_request, output)
        runner = self._services.runner
        if not request.body.get("stream"):
            return await server.unless_gone(self._whole(request, key), scope)
        wants_position = headers.get(b"x-kodolly-queue") == b"events"
        stream = ClientStream(request, output)
        streaming = runner.stream(request, key, stream, wants_position=wants_position)
        return await server.unless_gone(streaming, scope)

    async def _read(self, http_request: Request, output: ClientOutput) -> ApiRequest:
        body, size = await self._read_object(http_request)
        check(self._kind, body)  # type: ignore[type-var]
        check_bounds(body)
        chat = self._kind is ChatRequest
        return ApiRequest(self._path, body, output.request_id, chat, size, output.measurement)

    async def _whole(self, request: ApiRequest, key: str) -> Response:
        body = await self._services.runner.whole(request, key)
        return JsonBytes(body, request.request_id)


class JsonBytes(Response):
    """A 200 with a JSON body that is encoded already."""

    def __init__(self, body: bytes, request_id: str) -> None:
        self.status_code, self.body, self.background = 200, body, None
        self.raw_headers = [
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
            (b"x-request-id", request_id.encode()),
        ]


async def hang_up(http_request: Request) -> None:
    """Breaks the connection at once: a close would wait for the client to take what it was sent."""
    http_request.scope["extensions"]["kodolly.abort"]()
    with contextlib.suppress(TimeoutError):  # of two pipelined requests only the last is told
        async with asyncio.timeout(1):
            await server.until_disconnect(http_request.receive)


async def error_response(http_request: Request, error: ApiError, request_id: str) -> Response:
    """The error in OpenAI's envelope, with the request's id."""
    response = await server.error_response(http_request, error)
    response.headers["X-Request-Id"] = request_id
    return response


def request_id_of(http_request: Request) -> str:
    """The client's own id if it is a sane one, else a new one."""
    headers = dict(http_request.scope["headers"])
    client_id = headers.get(b"x-request-id", b"").decode("latin-1")
    return client_id if REQUEST_ID.fullmatch(client_id) else f"{random.getrandbits(128):032x}"
