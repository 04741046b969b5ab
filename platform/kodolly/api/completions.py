"""POST /v1/chat/completions and /v1/completions: check, wait for a place, choose, relay, go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kodolly.api.admission.admission import Admission, Ticket, class_of
from kodolly.api.admission.queue_position import told_aloud
from kodolly.api.auth import KeyRing
from kodolly.api.fastchat_worker import StockRelay
from kodolly.api.relay.budget import RetryBudget
from kodolly.api.relay.relay import Relay, Streamed
from kodolly.api.relay.retry import Tries
from kodolly.api.request import Call, WorkerGone
from kodolly.api.routing.router import Booked, Router
from kodolly.api.routing.table import Worker, WorkerTable
from kodolly.api.sse import LOST, ClientStalled, Output, error_event
from kodolly.errors import ApiError, EngineFailed, NoWorker
from kodolly.http import server
from kodolly.protocol.openai import ChatRequest, CompletionRequest, check

log = logging.getLogger(__name__)

ENDING = "The server is shutting down."
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Desk:
    """What both paths share: who may ask, who waits, who is asked, and how."""

    def __init__(
        self,
        keys: KeyRing,
        admission: Admission,
        table: WorkerTable,
        router: Router,
        budget: RetryBudget,
        relay: Relay,
        stock: StockRelay,
        max_body: int,
        client_timeout: float,
    ) -> None:
        self.keys = keys
        self.admission = admission
        self.router = router
        self.budget = budget
        self.max_body = max_body
        self.client_timeout = client_timeout
        self._table = table
        self._relay = relay
        self._stock = stock

    def relay_for(self, worker: Worker) -> Relay | StockRelay:
        """How this worker is spoken to."""
        return self._stock if worker.extension is None else self._relay

    def passed_over(self, call: Call, worker: Worker, error: WorkerGone) -> None:
        """Notes a worker that failed a call."""
        log.warning("%s: %s %s", call.request_id, worker.row.name, error)
        if not error.our_fault:
            self._table.suspect(worker)


class Completions:
    """An ASGI endpoint for one of the two paths."""

    def __init__(self, kind: type[ChatRequest | CompletionRequest], path: str, desk: Desk) -> None:
        self._kind = kind
        self._path = path
        self._desk = desk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        request_id = request_id_of(request)
        chunk = scope["extensions"]["kodolly.chunk"]
        output = Output(send, request_id, self._desk.client_timeout, chunk)
        try:
            response = await self._respond(request, output)
        except ClientStalled as error:
            log.warning("%s: %s: it is given up", request_id, error)
            return await hang_up(request)
        except ApiError as error:
            response = await error_response(request, error, request_id)
        except Exception:  # a fault of ours: told without its insides, and logged by the server
            if not output.begun:
                response = await error_response(request, ApiError("Internal error."), request_id)
                await response(scope, receive, send)
            raise
        if response is not None:
            await response(scope, receive, send)

    async def _respond(self, request: Request, output: Output) -> Response | None:
        """The answer to be sent; None once it was streamed, or when its client has gone."""
        key = self._desk.keys.admit(request.headers.get("authorization", ""))
        call = await self._read(request, output.request_id)
        if not call.body.get("stream"):
            return await server.unless_gone(self._whole(call, key), request.receive)
        aloud = request.headers.get("x-kodolly-queue") == "events"
        streaming = self._stream(call, key, Streamed(call, output), aloud=aloud)
        return await server.unless_gone(streaming, request.receive)

    async def _read(self, request: Request, request_id: str) -> Call:
        body = await server.read_object(request, self._desk.max_body)
        check(self._kind, body)  # type: ignore[type-var]
        return Call(self._path, body, request_id, chat=self._kind is ChatRequest)

    async def _whole(self, call: Call, key: str) -> Response:
        async with self._place(call, key):
            tries = self._first_try(call)
            return await self._answer(call, tries)

    async def _answer(self, call: Call, tries: Tries) -> Response:
        while True:
            if (booked := self._booked(call, tries)) is not None:
                with booked as worker:
                    try:
                        body = await self._desk.relay_for(worker).answer(call, worker)
                        headers = {"X-Request-Id": call.request_id}
                        return Response(body, media_type="application/json", headers=headers)
                    except WorkerGone as error:
                        self._desk.passed_over(call, worker, error)
                        tries.failed(worker.row.name, error, had=0)
                        continue
            await tries.wait(begun=False)

    def _place(self, call: Call, key: str) -> Ticket:
        priority = class_of(call.body.get("service_tier"))
        return self._desk.admission.admitted(call.model, key=key, priority=priority)

    def _first_try(self, call: Call) -> Tries:
        self._desk.budget.first_try(call.model)
        return Tries(call, self._desk.budget.allows)

    async def _stream(self, call: Call, key: str, answer: Streamed, *, aloud: bool) -> None:
        ticket = self._place(call, key)
        try:
            try:
                if aloud:
                    async with told_aloud(ticket, answer.output):
                        await ticket.enter()
                else:
                    await ticket.enter()
                await self._until_done(call, self._first_try(call), answer)
            finally:
                ticket.leave()
        except asyncio.CancelledError:
            # The client has gone, or the time of a process that was told to end is over.
            if answer.output.begun:
                await answer.output.write(error_event(ENDING, "shutting_down"))
                await answer.output.close()
            raise
        except ApiError as error:
            if not answer.output.begun:
                raise
            lost = answer.answered and isinstance(error, NoWorker)
            told = EngineFailed(LOST, code="worker_lost") if lost else error
            await answer.output.write(error_event(told.message, told.code or told.type, told.type))
        await answer.output.close()

    async def _until_done(self, call: Call, tries: Tries, answer: Streamed) -> None:
        while True:
            if (booked := self._booked(call, tries)) is not None:
                with booked as worker:
                    try:
                        await self._desk.relay_for(worker).stream(call, worker, answer)
                        return
                    except WorkerGone as error:
                        self._desk.passed_over(call, worker, error)
                        tries.failed(worker.row.name, error, answer.sort_out())
                        continue
            await tries.wait(begun=answer.answered)

    def _booked(self, call: Call, tries: Tries) -> Booked | None:
        """The worker to ask next; None when no other is left. Raises NoWorker at first."""
        try:
            return self._desk.router.dispatched(call, frozenset(tries.avoid))
        except NoWorker:
            if not tries.begun:
                raise
            return None


async def hang_up(request: Request) -> None:
    """Breaks the connection at once: a close would wait for the client to take what it was sent."""
    request.scope["extensions"]["kodolly.abort"]()
    with contextlib.suppress(TimeoutError):  # of two requests in one piece only the last is told
        async with asyncio.timeout(1):
            await server.until_disconnect(request.receive)


async def error_response(request: Request, error: ApiError, request_id: str) -> Response:
    """The error in OpenAI's envelope, with the request's id."""
    response = await server.error_response(request, error)
    response.headers["X-Request-Id"] = request_id
    return response


def request_id_of(request: Request) -> str:
    """The client's own id if it is a sane one, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
