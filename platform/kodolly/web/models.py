"""The list of available models, fetched once for all open pages."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import openai

from kodolly.web.failures import failure_key

MAX_AGE = 1.0  # seconds for which a list is used


@dataclass(frozen=True)
class ModelList:
    """Names of the models that have a worker now, or the reason why there are none.

    `problem`: "", or a key in texts.py without its `status_`.
    """

    models: tuple[str, ...] = ()
    problem: str = ""


class LiveModels:
    """Fetches `GET /v1/models` at most once in MAX_AGE seconds. Never raises."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client
        self._lock = asyncio.Lock()
        self._last = ModelList(problem="api_down")
        self._fetched_at = float("-inf")

    async def get(self) -> ModelList:
        async with self._lock:
            if time.monotonic() - self._fetched_at >= MAX_AGE:
                self._last = await self._fetch()
                self._fetched_at = time.monotonic()
            return self._last

    async def _fetch(self) -> ModelList:
        try:
            page = await self._client.models.list(timeout=5)
        except openai.OpenAIError as error:
            key = failure_key(error, begun=False)
            return ModelList(problem=key if key in ("no_access", "no_worker") else "api_down")
        names = tuple(model.id for model in page.data if _may_chat(model))
        return ModelList(names, "" if names else "no_worker")


def _may_chat(model: openai.types.Model) -> bool:
    """Whether a model makes text; one that does not say may."""
    capabilities = (model.model_extra or {}).get("capabilities")
    return (
        not isinstance(capabilities, list)
        or "chat" in capabilities
        or "embeddings" not in capabilities
    )
