"""The worker's side of the controller's protocol: register, send heartbeats, deregister."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Protocol

import httpx
import orjson

from kodolly.errors import ControllerError
from kodolly.http.client import CALL_ERRORS, describe_call_error, request_bounded
from kodolly.protocol.wire import (
    Extension,
    HeartbeatRequest,
    Registration,
    WorkerState,
    WorkerStatus,
)

log = logging.getLogger(__name__)

# Seconds for one call. A heartbeat that takes longer comes too late to count.
TIMEOUT = 3.0
# Seconds until the next try while the controller cannot be reached.
RETRY_INTERVAL = 0.5
# FastChat's own controller knows no states. A worker that is not ready reports a queue of this
# length to it, so that the controller prefers every other worker.
UNREADY_QUEUE_LENGTH = 1_000_000
# A controller that answers so will not take the worker: its token, address or models are wrong.
REFUSED = (400, 401, 403)


class ControllerClient:
    """Calls one controller: ours, or FastChat's own, which has no worker states."""

    def __init__(
        self, url: str, token: str | None, client: httpx.AsyncClient, timeout: float = TIMEOUT
    ) -> None:
        """`url`: the controller's root. `timeout`: seconds for one call."""
        self.url = url.rstrip("/")
        authorization = {"Authorization": f"Bearer {token}"} if token else {}
        self._headers = {"Content-Type": "application/json", **authorization}
        self._client = client
        self.timeout = timeout

    async def supports_states(self) -> bool:
        """Whether this is a KoDolly controller. Raises ControllerError if nobody answers."""
        try:
            async with asyncio.timeout(self.timeout):
                status, _ = await request_bounded(
                    self._client, "GET", f"{self.url}/health", timeout=None, follow_redirects=True
                )
        except CALL_ERRORS as error:
            raise ControllerError(
                f"no controller at {self.url}: {describe_call_error(error)}"
            ) from error
        return status == 200

    async def register(self, name: str, status: WorkerStatus, extension: Extension) -> None:
        """Registers the worker whose base URL is `name`. Raises ControllerError."""
        payload = Registration(worker_name=name, worker_status=status, kodolly=extension)
        await self._post("register_worker", payload.model_dump(mode="json"))

    async def heartbeat(self, name: str, queue_length: int, extension: Extension) -> bool:
        """Sends one heartbeat; False if the worker is not registered. Raises ControllerError."""
        payload = HeartbeatRequest(worker_name=name, queue_length=queue_length, kodolly=extension)
        answer = await self._post("receive_heart_beat", payload.model_dump(mode="json"))
        return bool(answer.get("exist")) if isinstance(answer, dict) else False

    async def deregister(self, name: str) -> None:
        """Removes the worker from the controller. FastChat's own has no such call: only a log line."""
        try:
            await self._post("deregister_worker", {"worker_name": name})
        except ControllerError as error:
            log.info("not deregistered: %s", error)

    async def _post(self, path: str, payload: dict[str, Any]) -> Any:
        url = f"{self.url}/{path}"
        try:
            async with asyncio.timeout(self.timeout):
                status, body = await request_bounded(
                    self._client,
                    "POST",
                    url,
                    content=orjson.dumps(payload),
                    headers=self._headers,
                    timeout=None,
                    follow_redirects=True,
                )
            if status != 200:
                text = body.decode("utf-8", "replace")[:300]
                raise ControllerError(f"{url} answered {status}: {text}", status)
            return orjson.loads(body)
        except CALL_ERRORS as error:
            raise ControllerError(f"{url}: {describe_call_error(error)}") from error


class WorkerStatusSource(Protocol):
    """What a heartbeat reports about a worker. None of it may wait for the engine."""

    @property
    def state(self) -> WorkerState:
        """Whether the worker takes requests."""

    @property
    def name(self) -> str:
        """The worker's base URL."""

    def last_status(self) -> WorkerStatus:
        """Its models, and the queue length that was measured last."""

    def extension(self) -> Extension:
        """KoDolly's additions to FastChat's protocol."""


class Heartbeat:
    """Keeps one controller informed about a worker.

    Every controller has a Heartbeat of its own, so that one that is down delays no other.
    """

    def __init__(
        self,
        controller: ControllerClient,
        worker: WorkerStatusSource,
        retry_interval: float = RETRY_INTERVAL,
    ) -> None:
        self._controller = controller
        self._worker = worker
        self._retry_interval = retry_interval
        self.refusal: str | None = None  # why this controller does not take the worker
        self.sent = self.failed = 0  # heartbeats and registrations
        self._state_change = asyncio.Event()
        self._is_registered = False
        self._supports_states = True

    def send_now(self) -> None:
        """The worker's state has changed: the next heartbeat does not wait for the interval."""
        self._state_change.set()

    async def run(self) -> None:
        """Registers, sends heartbeats, and registers again when the controller has restarted."""
        last_warning = ""
        while True:
            pause = self._worker.extension().heart_beat_interval
            self._state_change.clear()  # before sending: a later change needs a heartbeat of its own
            try:
                await self._send()
                self.sent += 1
                last_warning = ""
                self.refusal = None
            except ControllerError as error:
                self.failed += 1
                # A controller that does not answer has not changed its mind.
                if error.status is not None:
                    self.refusal = str(error) if error.status in REFUSED else None
                if str(error) != last_warning:  # one line for each cause, not one for each try
                    log.warning("%s", error)
                last_warning = str(error)
                pause = min(pause, self._retry_interval)
            # Not wait_for: in Python 3.11 it can lose a cancellation when the event is set.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._state_change.wait()

    async def deregister(self) -> None:
        """The worker ends. Cancel `run` first: a later heartbeat would register it again."""
        await self._controller.deregister(self._worker.name)

    async def _send(self) -> None:
        """One heartbeat, or a registration if the controller does not know the worker."""
        worker = self._worker
        if self._is_registered:
            queue_length = self._status().queue_length
            self._is_registered = await self._controller.heartbeat(
                worker.name, queue_length, worker.extension()
            )
            if self._is_registered:
                return
        self._supports_states = await self._controller.supports_states()
        if worker.state is not WorkerState.READY and not self._supports_states:
            return  # FastChat's own controller would send requests at once
        await self._controller.register(worker.name, self._status(), worker.extension())
        self._is_registered = True
        log.info("registered at %s as %s", self._controller.url, worker.name)

    def _status(self) -> WorkerStatus:
        status = self._worker.last_status()
        if self._supports_states or self._worker.state is WorkerState.READY:
            return status
        return status.model_copy(update={"queue_length": UNREADY_QUEUE_LENGTH})
