"""A dialect as data: the TOML file, its checks, and the frozen object all renderings start from."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .errors import TemplateError
from .guard import breaks, check_key, neutralise
from .messages import Dialogue, Exchange, Messages, read_dialogue, read_open_dialogue

if TYPE_CHECKING:
    from fastchat.conversation import Conversation

    from .training import TrainingText

SEPARATOR = "\n\n"  # between the paragraphs of every dialect
KEY_ENDINGS = (":\n", ": ")
FIELDS = {"name": str, "language": str, "introduction": str, "end": str, "stop": list}
OPTIONAL_FIELDS = {"special_tokens": list}
KEYS = ("instruction", "context", "response")


@dataclass(frozen=True, slots=True)
class Template:
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

    def with_guard(self, extra: Iterable[str]) -> Template:
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

    def conversation(self, messages: Messages = ()) -> Conversation:
        """FastChat's Conversation, open for an answer; without messages the bare template."""
        from .conversation import build_conversation

        return build_conversation(self, messages)

    def jinja(self, bos_token: str | None = None, extra_guard: Sequence[str] = ()) -> str:
        """The chat template for transformers and vLLM, which add no bos of their own to a chat.

        It writes `bos_token`, or the template's own when that is None.
        """
        from .jinja import build_jinja

        bos = self.bos_token if bos_token is None else bos_token
        return build_jinja(self.with_guard(extra_guard), bos)

    def training(self, messages: Messages, eos_token: str = "") -> TrainingText:
        """The training text and the character ranges of it that are learned."""
        from .training import build_training

        return build_training(self, messages, eos_token)

    def _safe(self, text: str) -> str:
        return neutralise(text, self.guard)

    def _safe_exchange(self, raw: Exchange) -> Exchange:
        response = None if raw.response is None else self._safe(raw.response)
        return Exchange(self._safe(raw.instruction), self._safe(raw.context), response)


def parse_template(source: str, origin: str) -> Template:
    """A Template from TOML text; `origin` is named in errors.

    Raises TemplateError naming the field that is missing, unknown, of the wrong type or unusable.
    """
    try:
        data = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise TemplateError(f"{origin}: not TOML: {error}") from error
    keys = data.pop("keys", None)
    if not isinstance(keys, dict) or set(keys) != set(KEYS):
        raise TemplateError(f"{origin}: [keys] must hold exactly {', '.join(KEYS)}")
    _check_fields(data, origin)
    template = Template(
        **{field: data[field] for field in ("name", "language", "introduction", "end")},
        **{f"{key}_key": keys[key] for key in KEYS},
        stop=tuple(data["stop"]),
        special_tokens=tuple(data.get("special_tokens", ())),
    )
    _check_template(template, origin)
    return template


def _check_fields(data: dict[str, Any], origin: str) -> None:
    known = FIELDS | OPTIONAL_FIELDS
    for field in sorted(set(data) - set(known)):
        raise TemplateError(f"{origin}: unknown field {field!r}")
    for field in FIELDS:
        if field not in data:
            raise TemplateError(f"{origin}: field {field!r} is missing")
    for field, value in data.items():
        if not isinstance(value, known[field]):
            raise TemplateError(f"{origin}: field {field!r} must be a {known[field].__name__}")
        if isinstance(value, list) and not all(isinstance(item, str) and item for item in value):
            raise TemplateError(f"{origin}: field {field!r} must hold texts")


def _check_template(template: Template, origin: str) -> None:
    keys = (template.instruction_key, template.context_key, template.response_key)
    if not any(all(str(key).endswith(ending) for key in keys) for ending in KEY_ENDINGS):
        raise TemplateError(f'{origin}: the keys must all end in ":\\n", or all in ": "')
    if template.introduction != template.introduction.strip():
        raise TemplateError(f"{origin}: the introduction has whitespace around it")
    if not any(stop in template.end for stop in template.stop):
        raise TemplateError(f"{origin}: no stop string is part of the end {template.end!r}")
    guarded = breaks(template.guard)  # raises for a key that cannot be guarded
    for key in guarded:
        if key in template.introduction or key in template.context_key:
            raise TemplateError(f"{origin}: the introduction or context key holds {key!r}")
