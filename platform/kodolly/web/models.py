"""The live list of models, one request for all open pages."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import openai

from kodolly.web.failures import failure_key

FRESH = 1.0  # seconds an answer of the API serves every page that asks


@dataclass(frozen=True)
class Available:
    """Model names that have a worker now, or why there are none.

    `problem` is "" or one of texts.py's keys after `status_`.
    """

    models: tuple[str, ...] = ()
    problem: str = ""


class LiveModels:
    """`GET /v1/models`, asked at most once in FRESH seconds. Never raises."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client
        self._lock = asyncio.Lock()
        self._last = Available(problem="api_down")
        self._asked = float("-inf")

    async def get(self) -> Available:
        async with self._lock:
            if time.monotonic() - self._asked >= FRESH:
                self._last = await self._ask()
                self._asked = time.monotonic()
            return self._last

    async def _ask(self) -> Available:
        try:
            page = await self._client.models.list(timeout=5)
        except openai.OpenAIError as error:
            key = failure_key(error, begun=False)
            known = key in ("no_access", "no_worker")
            return Available(problem=key if known else "api_down")
        names = tuple(model.id for model in page.data)
        return Available(names, "" if names else "no_worker")
