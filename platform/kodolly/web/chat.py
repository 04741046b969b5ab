"""Answers one turn of a conversation: turns the API's stream into messages for the page."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import openai

from kodolly.web.failures import Interrupted, explain
from kodolly.web.history import Message, assistant, for_api, notice
from kodolly.web.models import LiveModels
from kodolly.web.texts import Language
from kodolly.web.throttle import text_snapshots

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

# Asks the API to send our place in its queue, in events without choices.
QUEUE_EVENTS = {"X-KoDolly-Queue": "events"}
SYSTEM_LIMIT = 8_000  # characters
TOKENS_LIMIT = 32_768


@dataclass(frozen=True)
class Choices:
    """What a person chose in the settings. A value out of range is moved to the nearest limit."""

    model: str | None = None
    system: str = ""
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 512

    @classmethod
    def read(
        cls, model: Any, system: Any, temperature: Any, top_p: Any, max_tokens: Any
    ) -> Choices:
        """From the browser's values. They may be of any type and size."""
        return cls(
            model=model if isinstance(model, str) and model else None,
            system=system[:SYSTEM_LIMIT] if isinstance(system, str) else "",
            temperature=_between(temperature, 0.0, 2.0, cls.temperature),
            top_p=_between(top_p, 0.01, 1.0, cls.top_p),
            max_tokens=int(_between(max_tokens, 1, TOKENS_LIMIT, cls.max_tokens)),
        )


@dataclass
class Chat:
    """Calls the API for all pages."""

    client: openai.AsyncOpenAI
    live: LiveModels = field(init=False)

    def __post_init__(self) -> None:
        self.live = LiveModels(self.client)

    async def answer(
        self, history: Sequence[Message], choices: Choices, language: Language
    ) -> AsyncGenerator[list[Message], None]:
        """Yields the conversation with the answer so far; a failure becomes a notice at its end.

        Closing this iterator, or cancelling the task that runs it, closes the API's stream.
        """
        before = list(history)
        model = choices.model or next(iter((await self.live.get()).models), None)
        if model is None:
            problem = (await self.live.get()).problem or "no_worker"
            yield [*before, notice(language, problem)]
            return
        text, state = "", StreamState()
        try:
            async with aclosing(
                text_snapshots(self._pieces(model, before, choices, state))
            ) as states:
                async for text in states:
                    if text:
                        yield [*before, assistant(text)]
                    else:
                        yield [*before, *state.waiting(language)]
        except (openai.OpenAIError, Interrupted, ValueError) as error:  # ValueError: not JSON
            failure = explain(error, language, model=model, begun=bool(text))
            yield [*before, *([assistant(text)] if text else []), failure]
            return
        if state.reason == "length":
            yield [*before, assistant(text), notice(language, "length", retry=False)]

    async def _pieces(
        self, model: str, history: Sequence[Message], choices: Choices, state: StreamState
    ) -> AsyncIterator[str]:
        """The pieces of the answer. Raises openai.OpenAIError, or Interrupted if it is cut off."""
        messages = cast("list[ChatCompletionMessageParam]", for_api(history, choices.system))
        stream = await self.client.chat.completions.create(
            model=model,
            messages=messages,
            temperature=choices.temperature,
            top_p=choices.top_p,
            max_tokens=choices.max_tokens,
            stream=True,
            extra_headers=QUEUE_EVENTS,
        )
        async with stream:
            async for chunk in stream:
                state.queue = chunk.model_extra if chunk.model_extra else {}
                for choice in chunk.choices:
                    state.reason = choice.finish_reason or state.reason
                    if choice.delta.content:
                        yield choice.delta.content
        if state.reason is None:
            raise Interrupted("the stream ended without a finish reason")


@dataclass
class StreamState:
    """The state of an answer's stream: its finish reason (None until it ends) and queue place."""

    reason: str | None = None
    queue: Mapping[str, Any] = field(default_factory=dict)  # the API's last event about our place

    def waiting(self, language: Language) -> list[Message]:
        """A notice with our place in the API's queue; [] if we do not wait there."""
        position, seconds = self.queue.get("position"), self.queue.get("wait")
        if not isinstance(position, int) or not isinstance(seconds, int | float):
            return []
        shown = {"position": position, "seconds": max(1, math.ceil(seconds))}
        return [notice(language, "queued", retry=False, **shown)]


def _between(value: Any, low: float, high: float, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return min(max(value, low), high) if math.isfinite(value) else default
