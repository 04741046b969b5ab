"""A dialect's TOML file, its checks, and its three renderings."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .dialect import Dialect
from .errors import TemplateError
from .guard import breaks
from .jinja import build_jinja
from .messages import Messages
from .training import TrainingText, build_training

if TYPE_CHECKING:
    from fastchat.conversation import Conversation

KEY_ENDINGS = (":\n", ": ")
FIELDS = {"name": str, "language": str, "introduction": str, "end": str, "stop": list}
OPTIONAL_FIELDS = {"special_tokens": list}
KEYS = ("instruction", "context", "response")


@dataclass(frozen=True, slots=True)
class Template(Dialect):
    """A dialect with its renderings: FastChat's Conversation, Jinja, and the training text."""

    def conversation(self, messages: Messages = ()) -> Conversation:
        """FastChat's Conversation, open for an answer; without messages the bare template."""
        from .conversation import build_conversation

        return build_conversation(self, messages)

    def jinja(self, bos_token: str | None = None, extra_guard: Sequence[str] = ()) -> str:
        """The chat template for transformers and vLLM, which add no bos of their own to a chat.

        It writes `bos_token`, or the template's own when that is None.
        """
        bos = self.bos_token if bos_token is None else bos_token
        return build_jinja(self.with_guard(extra_guard), bos)

    def training(self, messages: Messages, eos_token: str = "") -> TrainingText:
        """The training text and the character ranges of it that are learned."""
        return build_training(self, messages, eos_token)


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
