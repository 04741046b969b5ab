"""POST /v1/chat/completions and /v1/completions: check, wait for a place, try workers, answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kodolly.api.admission.admission import Admission, Ticket, class_of
from kodolly.api.admission.queue_position import queue_events
from kodolly.api.auth import KeyRing
from kodolly.api.client_output import ClientOutput, ClientStalled
from kodolly.api.errors import WorkerFailed
from kodolly.api.fastchat_worker.relay import FastChatRelay
from kodolly.api.pings import Pings
from kodolly.api.relay.relay import ClientStream, Relay
from kodolly.api.relay.retry import RetryBudget, RetryState
from kodolly.api.request import ApiRequest
from kodolly.api.routing.context import check_fits
from kodolly.api.routing.router import Booking, Router
from kodolly.api.routing.table import Worker, WorkerTable
from kodolly.api.sse import LOST, error_event
from kodolly.errors import ApiError, ContextOverflow, EngineFailed, NoWorker
from kodolly.http import bodies, server
from kodolly.protocol.openai import ChatRequest, CompletionRequest, check, without_nulls
from kodolly.protocol.request_bounds import check_bounds, may_break_engine

log = logging.getLogger(__name__)

T = TypeVar("T")

SHUTTING_DOWN = "The server is shutting down."
INTERNAL_ERROR = "Internal error."
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class CompletionServices:
    """What both paths use. `max_body` in bytes; `client_timeout` in seconds (see ClientOutput)."""

    keys: KeyRing
    admission: Admission
    table: WorkerTable
    router: Router
    retry_budget: RetryBudget
    relay: Relay
    fastchat_relay: FastChatRelay
    max_body: int
    client_timeout: float
    pings: Pings
    body_turns: bodies.BodyTurns

    def relay_for(self, worker: Worker) -> Relay | FastChatRelay:
        """The relay that speaks this worker's protocol."""
        return self.fastchat_relay if worker.extension is None else self.relay


class Completions:
    """An ASGI endpoint for one of the two paths."""

    def __init__(
        self,
        kind: type[ChatRequest | CompletionRequest],
        path: str,
        services: CompletionServices,
    ) -> None:
        self._kind = kind
        self._path = path
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        http_request = Request(scope, receive)
        request_id = request_id_of(http_request)
        chunk = scope["extensions"]["kodolly.chunk"]
        output = ClientOutput(send, request_id, self._services.client_timeout, chunk)
        try:
            response = await self._respond(http_request, output)
        except ClientStalled as error:
            log.warning("%s: %s: it is given up", request_id, error)
            return await hang_up(http_request)
        except ApiError as error:
            response = await error_response(http_request, error, request_id)
        except Exception:  # our own fault: the client gets no details, and the server logs it
            if not output.has_started:
                failure = ApiError(INTERNAL_ERROR)
                response = await error_response(http_request, failure, request_id)
                await response(scope, receive, send)
            raise
        if response is not None:
            await response(scope, receive, send)

    async def _respond(self, http_request: Request, output: ClientOutput) -> Response | None:
        """The answer to be sent; None once it was streamed, or when its client has gone."""
        key = self._services.keys.admit(http_request.headers.get("authorization", ""))
        request = await self._read(http_request, output.request_id)
        check_fits(request, self._services.table)
        if not request.body.get("stream"):
            return await server.unless_gone(self._whole(request, key), http_request.receive)
        wants_position = http_request.headers.get("x-kodolly-queue") == "events"
        stream = ClientStream(request, output)
        streaming = self._stream(request, key, stream, wants_position=wants_position)
        return await server.unless_gone(streaming, http_request.receive)

    async def _read(self, http_request: Request, request_id: str) -> ApiRequest:
        services = self._services
        body, size = await bodies.read_sized_object(
            http_request, services.max_body, services.body_turns
        )
        body = without_nulls(body)
        check(self._kind, body)  # type: ignore[type-var]
        check_bounds(body)
        return ApiRequest(self._path, body, request_id, self._kind is ChatRequest, size)

    async def _whole(self, request: ApiRequest, key: str) -> Response:
        async def attempt(worker: Worker) -> bytes:
            return await self._services.relay_for(worker).answer(request, worker)

        async with self._ticket(request, key):
            body = await self._try_workers(request, attempt, None)
        headers = {"X-Request-Id": request.request_id}
        return Response(body, media_type="application/json", headers=headers)

    async def _stream(
        self, request: ApiRequest, key: str, stream: ClientStream, *, wants_position: bool
    ) -> None:
        async def attempt(worker: Worker) -> None:
            await self._services.relay_for(worker).stream(request, worker, stream)

        output = stream.output
        ticket = self._ticket(request, key)
        self._services.pings.add(output)
        try:
            try:
                if wants_position:
                    async with queue_events(ticket, output):
                        await ticket.enter()
                else:
                    await ticket.enter()
                await self._try_workers(request, attempt, stream)
            finally:
                ticket.leave()
        except asyncio.CancelledError:
            # The client has gone, or this process is told to end and its drain timeout is over.
            if output.has_started:
                await output.write(error_event(SHUTTING_DOWN, "shutting_down"))
                await output.close()
            raise
        except ApiError as error:
            if not output.has_started:
                raise
            if stream.has_answer and isinstance(error, NoWorker):
                error = EngineFailed(LOST, code="worker_lost")
            await output.write(error_event(error.message, error.code or error.type, error.type))
        except ClientStalled:
            raise
        except (
            Exception
        ):  # our own fault: a stream that is cut off would look like a broken network
            if not output.has_started:
                raise
            log.exception("%s: a stream failed by our own fault", request.request_id)
            await output.write(error_event(INTERNAL_ERROR, "internal_error"))
        finally:
            self._services.pings.discard(output)
        await output.close()

    def _ticket(self, request: ApiRequest, key: str) -> Ticket:
        priority = class_of(request.body.get("service_tier"))
        return self._services.admission.ticket(request.model, key=key, priority=priority)

    async def _try_workers(
        self,
        request: ApiRequest,
        attempt: Callable[[Worker], Awaitable[T]],
        stream: ClientStream | None,
    ) -> T:
        """What `attempt` returns for the first worker that does not fail. Raises ApiError."""
        services = self._services
        state = services.retry_budget.first_attempt(request)
        while True:
            if (booking := self._book(request, state)) is not None:
                with booking as worker:
                    try:
                        return await attempt(worker)
                    except ContextOverflow as error:
                        context = services.table.smaller_context(worker, request.model)
                        if context is None or (stream and stream.has_answer):
                            raise
                        state.overflowed(error, context)
                        continue
                    except WorkerFailed as error:
                        log.warning("%s: %s %s", request.request_id, worker.row.name, error)
                        # An engine that says by a 500 that it cannot do a grammar is well.
                        own = error.client_error is not None and may_break_engine(request.body)
                        if not (error.our_fault or own):
                            services.table.suspect(worker)
                        delivered = stream.delivered() if stream else 0
                        state.failed(worker.row.name, error, delivered)
                        if stream is not None:
                            state.least_context = max(state.least_context, stream.tokens() + 1)
                            if delivered:  # elsewhere it could be cut short
                                state.preferred_context = worker.context_of(request.model) or 0
                        continue
            await state.wait(in_stream=stream is not None and stream.has_answer)

    def _book(self, request: ApiRequest, state: RetryState) -> Booking | None:
        """The worker to try next; None when every one is excluded. Raises NoWorker at first."""
        try:
            excluded = frozenset(state.excluded)
            return self._services.router.book(
                request, excluded, state.least_context, state.preferred_context
            )
        except NoWorker:
            if not state.has_tried:
                raise
            return None


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
    client_id = http_request.headers.get("x-request-id", "")
    return client_id if REQUEST_ID.fullmatch(client_id) else f"{random.getrandbits(128):032x}"
