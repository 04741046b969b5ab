"""The worker's side of the controller's protocol: register, beat, say goodbye."""

from __future__ import annotations

import logging
from typing import Any

import aiohttp

from kodolly.errors import ControllerError
from kodolly.protocol.wire import Extension, HeartBeat, Registration, WorkerStatus

log = logging.getLogger(__name__)

TIMEOUT = aiohttp.ClientTimeout(total=5)


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
            raise ControllerError(f"no controller at {self.url}: {error}") from error

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
