"""Joining a FastChat-protocol controller: register, beat, register again when forgotten."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import aiohttp
from support.fastchat_face import FastChatFace

if TYPE_CHECKING:
    from support.scripted_engine import ScriptedEngine


class Registration:
    """One engine's place at one controller.

    `kodolly` None joins as a FastChat worker; a dict joins as a KoDolly worker and overrides
    fields of its block. It may be changed while it runs; `beat()` tells the controller at once.
    """

    def __init__(
        self,
        engine: "ScriptedEngine",
        controller: str,
        *,
        kodolly: dict[str, Any] | None = None,
        token: str | None = None,
        interval: float = 5.0,
        name: str | None = None,
    ) -> None:
        self.engine, self.controller = engine, controller.rstrip("/")
        self.kodolly, self.interval = kodolly, interval
        self.name = name or engine.url
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = aiohttp.ClientTimeout(total=5)
        self._client = aiohttp.ClientSession(headers=headers, timeout=timeout)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self._register()
        self._task = asyncio.create_task(self._keep_beating())

    async def stop(self) -> None:
        """Fall silent, as a killed worker does."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._client.close()

    async def beat(self) -> None:
        """One heartbeat now."""
        status = FastChatFace(self.engine).status()
        beat = {"worker_name": self.name, "queue_length": status["queue_length"]}
        async with self._client.post(
            self.controller + "/receive_heart_beat", json=beat | self._block()
        ) as response:
            response.raise_for_status()
            known = (await response.json()).get("exist")
        if not known:
            await self._register()

    async def _register(self) -> None:
        payload = {
            "worker_name": self.name,
            "check_heart_beat": True,
            "worker_status": FastChatFace(self.engine).status(),
            "multimodal": False,
        }
        async with self._client.post(
            self.controller + "/register_worker", json=payload | self._block()
        ) as response:
            response.raise_for_status()

    def _block(self) -> dict[str, Any]:
        if self.kodolly is None:
            return {}
        block = {
            "state": "ready",
            "engine_url": self.engine.url,
            "heart_beat_interval": self.interval,
            "context_length": self.engine.script.context_length,
            "template": "tokenizer",
            "stop": [],
            "guard": [],
            "version": "0.1.0",
        }
        return {"kodolly": block | self.kodolly}

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(self.interval)
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                await self.beat()
