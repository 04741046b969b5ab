"""The worker's side of the controller's protocol: register, beat, say goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Protocol

import aiohttp

from kodolly.errors import ControllerError
from kodolly.protocol.wire import Extension, HeartBeat, Registration, WorkerState, WorkerStatus

log = logging.getLogger(__name__)

# A beat that takes longer than the controller's patience is as good as lost.
TIMEOUT = aiohttp.ClientTimeout(total=3)
CONTROLLER_RETRY = 0.5
# A stock controller knows no states: it is told a queue so long that it asks any other first.
UNFIT = 1_000_000


class ControllerClient:
    """Talks to one controller: ours, or a stock FastChat one, which knows no states."""

    def __init__(self, url: str, token: str | None, session: aiohttp.ClientSession) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = session

    async def knows_states(self) -> bool:
        """Whether this is a KoDolly controller. Raises ControllerError if nobody answers."""
        try:
            async with self._session.get(f"{self.url}/health", timeout=TIMEOUT) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ControllerError(
                f"no controller at {self.url}: {error or type(error).__name__}"
            ) from error

    async def register(self, name: str, status: WorkerStatus, extension: Extension) -> None:
        """Announces the worker whose base URL is `name`. Raises ControllerError."""
        payload = Registration(worker_name=name, worker_status=status, kodolly=extension)
        await self._post("register_worker", payload.model_dump(mode="json"))

    async def beat(self, name: str, queue_length: int, extension: Extension) -> bool:
        """One heartbeat; False when the controller does not know us. Raises ControllerError."""
        payload = HeartBeat(worker_name=name, queue_length=queue_length, kodolly=extension)
        answer = await self._post("receive_heart_beat", payload.model_dump(mode="json"))
        return bool(answer.get("exist")) if isinstance(answer, dict) else False

    async def deregister(self, name: str) -> None:
        """Says goodbye; a stock controller has no such call and finds out by itself."""
        try:
            await self._post("deregister_worker", {"worker_name": name})
        except ControllerError as error:
            log.info("not deregistered: %s", error)

    async def _post(self, path: str, payload: dict[str, Any]) -> Any:
        url = f"{self.url}/{path}"
        try:
            async with self._session.post(
                url, json=payload, headers=self._headers, timeout=TIMEOUT
            ) as answer:
                if answer.status != 200:
                    text = (await answer.text())[:300]
                    raise ControllerError(f"{url} answered {answer.status}: {text}")
                return await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ControllerError(f"{url}: {error or type(error).__name__}") from error


class Told(Protocol):
    """What a controller is told of a worker. Nothing of it may wait for the engine."""

    @property
    def state(self) -> WorkerState:
        """Whether it takes requests."""

    @property
    def name(self) -> str:
        """Its base URL."""

    def last_status(self) -> WorkerStatus:
        """Its models, and its load as known last."""

    def extension(self) -> Extension:
        """What it tells beyond FastChat's protocol."""


class Teller:
    """Tells one controller of a worker, for as long as it runs; other controllers have their own.

    So a controller that is dead or hangs never delays what another one hears.
    """

    def __init__(self, controller: ControllerClient, worker: Told) -> None:
        self._controller = controller
        self._worker = worker
        self._news = asyncio.Event()
        self._known = False
        self._knows_states = True

    def tell_now(self) -> None:
        """The worker's state has changed: the next beat goes out at once."""
        self._news.set()

    async def run(self) -> None:
        """Registers, beats, and registers again whenever the controller has forgotten."""
        complained = ""
        while True:
            pause = self._worker.extension().heart_beat_interval
            self._news.clear()  # before telling: a change meanwhile must be told again
            try:
                await self._tell()
                complained = ""
            except ControllerError as error:
                if str(error) != complained:  # once a cause, not twice a second
                    log.warning("%s", error)
                complained = str(error)
                pause = min(pause, CONTROLLER_RETRY)
            # Not wait_for: Python 3.11's forgets a cancellation that meets the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._news.wait()

    async def goodbye(self) -> None:
        """The worker ends. No beat may follow: the controller would ask it to register again."""
        await self._controller.deregister(self._worker.name)

    async def _tell(self) -> None:
        """Beats, or registers if the controller does not know us."""
        worker = self._worker
        if self._known:
            queue = self._status().queue_length
            self._known = await self._controller.beat(worker.name, queue, worker.extension())
            if self._known:
                return
        self._knows_states = await self._controller.knows_states()
        if worker.state is not WorkerState.READY and not self._knows_states:
            return  # it would send requests at once
        await self._controller.register(worker.name, self._status(), worker.extension())
        self._known = True
        log.info("registered at %s as %s", self._controller.url, worker.name)

    def _status(self) -> WorkerStatus:
        status = self._worker.last_status()
        if self._knows_states or self._worker.state is WorkerState.READY:
            return status
        return status.model_copy(update={"queue_length": UNFIT})
