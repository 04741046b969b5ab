"""A dialect of prompts as data, and the pieces of text that all its renderings are made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Self

from .guard import check_key, neutralise
from .messages import SEPARATOR, Dialogue, Messages, Text, Turn, read_dialogue, read_text


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
    def knows(self) -> tuple[str, ...]:
        """What it has a place for beside plain messages: the role `developer`, but no tools."""
        return ("developer",)

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

    def text(self, text: Text) -> str:
        """A message's content and, where there is one, the context paragraph."""
        if not text.context:
            return text.content
        return text.content + SEPARATOR + self.context_key + text.context

    def dialogue(self, messages: Messages) -> Dialogue:
        """Messages checked, stripped, neutralised and joined; the common start of all renderings.

        Raises TemplateError naming the message that cannot be said.
        """
        return read_dialogue(messages, lambda text: self.text(self._safe(text)))

    def prompt(self, messages: Messages) -> str:
        """The generation prompt: the model is to write an answer after the last message."""
        dialogue = self.dialogue(messages)
        turns = [self.turn(turn) + SEPARATOR for turn in dialogue.turns]
        return self.preamble(dialogue.system) + "".join(turns) + self.response_prompt

    def turn(self, turn: Turn) -> str:
        """One turn with its key, and an answer with its end."""
        if turn.is_answer:
            return f"{self.response_key}{turn.text}{self.end}"
        return self.instruction_key + turn.text

    def flatten(self, messages: Messages) -> list[dict[str, Any]]:
        """Messages with each context folded into its content, for engines that know no such field.

        vLLM drops unknown message fields; the prompt that comes out is the same either way.
        """
        flat = []
        for index, message in enumerate(messages):
            plain = {key: value for key, value in message.items() if key != "context"}
            if message.get("role") == "user" and str(message.get("context") or "").strip():
                plain["content"] = self.text(read_text(message, index))
            flat.append(plain)
        return flat

    def _safe(self, text: Text) -> Text:
        content, context = (neutralise(one, self.guard) for one in (text.content, text.context))
        return Text(text.role, content, context)
