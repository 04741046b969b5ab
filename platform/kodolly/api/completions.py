"""POST /v1/chat/completions and /v1/completions: check, choose, relay, retry."""

from __future__ import annotations

import re
import uuid

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kodolly import serving
from kodolly.api.auth import KeyRing
from kodolly.api.engine_errors import RETRY_AFTER
from kodolly.api.relay import Call, Relay, WorkerGone
from kodolly.api.stock_worker import StockRelay
from kodolly.api.table import Worker
from kodolly.errors import ApiError, NoWorker
from kodolly.protocol.openai import ChatRequest, CompletionRequest, check

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Completions:
    """An ASGI endpoint for one of the two paths."""

    def __init__(
        self,
        kind: type[ChatRequest | CompletionRequest],
        path: str,
        relay: Relay,
        stock: StockRelay,
        keys: KeyRing,
        max_body: int,
    ) -> None:
        self._kind = kind
        self._path = path
        self._relay = relay
        self._stock = stock
        self._keys = keys
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        request_id = request_id_of(request)
        try:
            self._keys.admit(request.headers.get("authorization", ""))
            call = await self._read(request, request_id)
            work = self._stream(call, send) if call.body.get("stream") else self._whole(call)
            response = await serving.unless_gone(work, receive)
        except ApiError as error:
            response = await serving.error_response(request, error)
            response.headers["X-Request-Id"] = request_id
        if response is not None:
            await response(scope, receive, send)

    async def _read(self, request: Request, request_id: str) -> Call:
        body = await serving.read_object(request, self._max_body)
        check(self._kind, body)  # type: ignore[type-var]
        return Call(self._path, body, request_id, chat=self._kind is ChatRequest)

    async def _whole(self, call: Call) -> Response:
        told: ApiError | None = None
        for worker in self._relay.candidates(call.model):
            with self._relay.booking(worker):
                try:
                    body = await self._relay_for(worker).answer(call, worker)
                except WorkerGone as error:
                    self._relay.passed_over(call, worker, error)
                    told = error.told or told
                    continue
            headers = {"X-Request-Id": call.request_id}
            return Response(body, media_type="application/json", headers=headers)
        raise told or _all_failed(call)

    async def _stream(self, call: Call, send: Send) -> None:
        told: ApiError | None = None
        for worker in self._relay.candidates(call.model):
            with self._relay.booking(worker):
                try:
                    return await self._relay_for(worker).stream(call, worker, send)
                except WorkerGone as error:
                    self._relay.passed_over(call, worker, error)
                    told = error.told or told
        raise told or _all_failed(call)

    def _relay_for(self, worker: Worker) -> Relay | StockRelay:
        return self._stock if worker.extension is None else self._relay


def request_id_of(request: Request) -> str:
    """The client's own id if it is a sane one, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _all_failed(call: Call) -> ApiError:
    return NoWorker(
        f"No worker of model '{call.model}' answered. Try again in a moment.",
        headers=RETRY_AFTER,
    )
