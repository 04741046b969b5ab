"""Who asks what, and how they read it. The answers are known to the character, as in the chaos benchmark."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from support.script import Script, chat_prompt

from benchmarks.chaos import asks as chaos
from benchmarks.chaos.asks import CHAT, Ask, Expected
from benchmarks.chaos.plan import Plan
from benchmarks.soak.plan import ANSWERS, MODEL

TURNS = 6  # of a chat that goes on from its own answers
LONG = 14_000  # bytes of a prompt that nearly fills the context of 16,384 tokens
SLOW_COPIES = 8


@dataclass(frozen=True, slots=True)
class Visit:
    """One call and how its client behaves: `leaves` after so many events, `slow` to read."""

    ask: Ask
    leaves: int | None = None
    slow: bool = False


class Questions:
    """All calls of a run; every prompt is new, or goes on from an answer."""

    def __init__(self, plan: Plan = ANSWERS, first: int = 0) -> None:
        """Answers by the plan's script; questions are numbered from `first`, so that no two runs ask the same."""
        self._script = Script(model=MODEL)
        for name, value in plan.script().items():
            setattr(self._script, name, value)
        self._tokens = plan.tokens
        self._mixture = chaos.scripted(plan, first)
        self._numbers = itertools.count(first)

    def of(self, client: int) -> Iterator[Visit]:
        """What one client asks, without end: one in twenty reads slowly, one in eight chats on."""
        if client % 20 == 7:
            return (self._slow(number) for number in self._numbers)
        if client % 8 == 0:
            return self._chats()
        return self._mixed()

    def _mixed(self) -> Iterator[Visit]:
        """The chaos benchmark's ten kinds; one call in 40 is long, one in 9 is left."""
        while True:
            number = next(self._numbers)
            ask = self._long(number) if number % 40 == 39 else next(self._mixture)
            leaves = 1 + number % 30 if number % 9 == 4 else None
            yield Visit(ask, leaves)

    def _chats(self) -> Iterator[Visit]:
        """Chats whose next question comes after their own last answer."""
        while True:
            messages: list[dict[str, str]] = []
            for _ in range(TURNS):
                number = next(self._numbers)
                messages.append({"role": "user", "content": f"대화 {number}: 그다음은요?"})
                ask = self._chat("chat on", [*messages], number)
                yield Visit(ask)
                messages.append({"role": "assistant", "content": ask.expected[0].text})

    def _slow(self, number: int) -> Visit:
        """An answer that is large enough to fill the sockets of a client who does not keep up."""
        asked = [{"role": "user", "content": f"천천히 {number}"}]
        return Visit(self._chat("slow", asked, number, n=SLOW_COPIES, logprobs=True), slow=True)

    def _long(self, number: int) -> Ask:
        """A fresh prompt of the model's size."""
        line = f"{number}번째 긴 글의 한 줄입니다. "
        text = line * (LONG // len(line.encode()))
        return self._chat("long", [{"role": "user", "content": text}], number)

    def _chat(self, name: str, messages: list[dict[str, str]], number: int, **fields: Any) -> Ask:
        low, high = self._tokens
        limit = low + number * 37 % (high - low + 1)
        body = {"model": MODEL, "messages": messages, "max_tokens": limit, "stream": True} | fields
        prompt = self._script.encode(chat_prompt(body))
        answer = self._script.answer(limit, prompt=prompt)
        ids = tuple(step.token_id for step in answer.steps)
        choice = Expected(answer.text, answer.finish_reason, ids)
        return Ask(name, "raw", CHAT, body, [choice] * int(fields.get("n", 1)), len(prompt))
