"""A dialect of prompts as data, and the pieces of text that all its renderings are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

from .guard import check_key, neutralise
from .messages import Dialogue, Exchange, Messages, read_dialogue, read_open_dialogue

SEPARATOR = "\n\n"  # between the paragraphs of every dialect


@dataclass(frozen=True, slots=True)
class Dialect:
    """One dialect of prompts. Immutable; `with_guard` gives a copy that guards more keys."""

    name: str
    language: str
    introduction: str  # "" or one paragraph that always stays first
    instruction_key: str
    context_key: str
    response_key: str
    end: str  # what follows a response, with the newlines before it
    stop: tuple[str, ...]  # strings at which an engine ends the answer
    special_tokens: tuple[str, ...] = ()  # keys that training adds to the tokenizer
    extra_guard: tuple[str, ...] = ()
    bos_token: str = ""  # what the model's tokenizer puts before a text; only Jinja writes it

    @property
    def guard(self) -> tuple[str, ...]:
        """Strings that inserted text may never hold: the keys that make or end a turn, then extras."""
        own = (self.instruction_key, self.response_key, self.end)
        return tuple(dict.fromkeys([*(key.strip() for key in own), *self.extra_guard]))

    @property
    def response_prompt(self) -> str:
        """The response key as a generation prompt: without the space, which is part of the first token."""
        return self.response_key.rstrip(" ")

    @property
    def response_lead(self) -> str:
        """What the model writes before a response: "" or one space."""
        return self.response_key[len(self.response_prompt) :]

    def with_guard(self, extra: Iterable[str]) -> Self:
        """A copy that also guards `extra`, usually the special tokens of the model's tokenizer."""
        return replace(self, extra_guard=(*self.extra_guard, *(check_key(key) for key in extra)))

    def preamble(self, system: str) -> str:
        """What stands before the first turn: the introduction, then the system text, if any."""
        return "".join(part + SEPARATOR for part in (self.introduction, system) if part)

    def user_text(self, exchange: Exchange) -> str:
        """Instruction and, where there is one, the context paragraph."""
        if not exchange.context:
            return exchange.instruction
        return exchange.instruction + SEPARATOR + self.context_key + exchange.context

    def dialogue(self, messages: Messages, *, must_be_open: bool = False) -> Dialogue:
        """Messages checked, stripped and neutralised; the common start of all renderings.

        Raises TemplateError naming the message that is out of order, empty or not text.
        """
        raw = read_open_dialogue(messages) if must_be_open else read_dialogue(messages)
        return Dialogue(
            self._safe(raw.system), tuple(self._safe_exchange(e) for e in raw.exchanges)
        )

    def prompt(self, messages: Messages) -> str:
        """The generation prompt; the last message must be the user's."""
        dialogue = self.dialogue(messages, must_be_open=True)
        turns = [self.instruction_key + self.user_text(e) + SEPARATOR for e in dialogue.exchanges]
        answers = [self.answer(e) + SEPARATOR for e in dialogue.exchanges[:-1]]
        closed = "".join(turn + answer for turn, answer in zip(turns, answers, strict=False))
        return self.preamble(dialogue.system) + closed + turns[-1] + self.response_prompt

    def answer(self, exchange: Exchange) -> str:
        """The response key, a response, and its end."""
        return f"{self.response_key}{exchange.response}{self.end}"

    def flatten(self, messages: Messages) -> list[dict[str, Any]]:
        """Messages with each context folded into its content, for engines that know no such field.

        vLLM drops unknown message fields; the prompt that comes out is the same either way.
        """
        flat = []
        for message in messages:
            plain = {key: value for key, value in message.items() if key != "context"}
            if message.get("role") == "user" and str(message.get("context") or "").strip():
                exchange = read_dialogue([message]).exchanges[0]
                plain["content"] = self.user_text(exchange)
            flat.append(plain)
        return flat

    def _safe(self, text: str) -> str:
        return neutralise(text, self.guard)

    def _safe_exchange(self, raw: Exchange) -> Exchange:
        response = None if raw.response is None else self._safe(raw.response)
        return Exchange(self._safe(raw.instruction), self._safe(raw.context), response)
