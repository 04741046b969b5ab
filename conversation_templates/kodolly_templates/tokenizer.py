"""The model's own chat template, with the same face as a dialect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .directory import chat_template_of, named_tokens, special_tokens_of
from .errors import TemplateError
from .guard import check_key, neutralise
from .messages import SEPARATOR, Messages, read_dialogue, read_text
from .training import TrainingText

if TYPE_CHECKING:
    from fastchat.conversation import Conversation

TOKENIZER = "tokenizer"


@dataclass(frozen=True, slots=True)
class TokenizerTemplate:
    """A chat template that came with a model.

    Contents are neutralised but otherwise left to the template: it decides on roles, order and
    whitespace. An engine renders the same template without guarding, so a caller that sends it messages
    passes each content through `neutralise(content, guard)` first.
    """

    source: str
    tokens: Mapping[str, str] = field(
        default_factory=dict
    )  # bos_token, eos_token ... for the source
    guard: tuple[str, ...] = ()
    name: str = TOKENIZER
    language: str = ""
    special_tokens: tuple[str, ...] = ()  # the tokenizer has them all already

    @classmethod
    def from_directory(cls, model_dir: str | Path) -> TokenizerTemplate:
        """The template in `model_dir`; TemplateError, saying what to do, when there is none."""
        directory = Path(model_dir)
        source = chat_template_of(directory)
        return cls(source, named_tokens(directory), tuple(special_tokens_of(directory)))

    @property
    def knows(self) -> tuple[str, ...]:
        """What it has a place for: of the role `developer`, `tools` and `documents`, those it names."""
        return tuple(name for name in ("developer", "tools", "documents") if name in self.source)

    @property
    def stop(self) -> tuple[str, ...]:
        """None: these models end a turn with a token, which their generation config names."""
        return ()

    def with_guard(self, extra: Sequence[str]) -> TokenizerTemplate:
        """A copy that also guards `extra`."""
        return replace(self, guard=(*self.guard, *(check_key(key) for key in extra)))

    def prompt(self, messages: Messages) -> str:
        """The generation prompt, with whatever bos the template writes: tokenize it without adding one.

        Raises TemplateError in the template's own words when it refuses the messages.
        """
        return self.render(messages, add_generation_prompt=True)

    def render(self, messages: Messages, *, add_generation_prompt: bool) -> str:
        """The template's text for neutralised messages."""
        from .sandbox import render

        variables: dict[str, Any] = dict(self.tokens)
        variables["messages"] = [self._role_known(self._safe(m)) for m in messages]
        variables["add_generation_prompt"] = add_generation_prompt
        return render(self.source, {"tools": None, "documents": None, **variables})

    def jinja(self) -> str:
        """The template's source, unchanged."""
        return self.source

    def flatten(self, messages: Messages) -> list[dict[str, Any]]:
        """Messages with each context put after its content: these templates know no such field."""
        flat = []
        for index, message in enumerate(messages):
            plain = {key: value for key, value in message.items() if key != "context"}
            if message.get("role") == "user" and str(message.get("context") or "").strip():
                text = read_text(message, index)
                plain["content"] = text.content + SEPARATOR + text.context
            flat.append(plain)
        return flat

    def conversation(self, messages: Messages = ()) -> Conversation:
        """FastChat's Conversation, inferred by probing the template.

        Raises TemplateError when FastChat's terms cannot express it, for these messages or at all.
        """
        from .probe import fill, probe

        shape = probe(self.prompt, self.guard)
        if not messages:
            return shape.conversation(has_system=False)
        safe, prompt = self._all_safe(messages), self.prompt(messages)
        for strip in (False, True):  # some templates trim contents, some do not
            conversation = fill(shape, read_dialogue(safe, strip=strip))
            if conversation.get_prompt() == prompt:
                return conversation
        raise TemplateError("FastChat's Conversation cannot express this chat")

    def training(self, messages: Messages, eos_token: str = "") -> TrainingText:
        """Each response is learned from the end of its generation prompt through its end of turn.

        Raises TemplateError when the template rewrites earlier turns, so that no text before a response
        is its generation prompt.
        """
        if not read_dialogue(messages).ends_with_answer:
            raise TemplateError(
                f"message {len(messages) - 1}: training needs a response at the end"
            )
        messages = [m for i, m in enumerate(messages) if not _is_empty_answer(m, i)]
        text = self.render(messages, add_generation_prompt=False).rstrip()
        if eos_token and not text.endswith(eos_token):
            text += eos_token
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [self._span(messages, index, text) for index in answers]
        spans[-1] = (spans[-1][0], len(text))
        return TrainingText(text, tuple(spans))

    def _span(self, messages: Messages, index: int, text: str) -> tuple[int, int]:
        before = self.prompt(messages[:index])
        after = self.render(messages[: index + 1], add_generation_prompt=False).rstrip()
        if not (text.startswith(before) and text.startswith(after) and len(before) < len(after)):
            raise TemplateError(f"message {index}: the chat template rewrites earlier turns")
        return len(before), len(after)

    def _role_known(self, message: dict[str, Any]) -> dict[str, Any]:
        if message.get("role") != "developer" or "developer" in self.knows:
            return message
        return message | {"role": "system"}

    def _all_safe(self, messages: Messages) -> list[dict[str, Any]]:
        return [self._safe(message) for message in messages]

    def _safe(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A copy with every string in it neutralised, but not the names of its fields."""
        return {key: self._safe_value(value) for key, value in message.items()}

    def _safe_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return neutralise(value, self.guard)
        if isinstance(value, list):
            return [self._safe_value(item) for item in value]
        if isinstance(value, Mapping):
            return {key: self._safe_value(item) for key, item in value.items()}
        return value


def _is_empty_answer(message: Mapping[str, Any], index: int) -> bool:
    """Whether an assistant says nothing: there is nothing to learn but to fall silent."""
    text = read_text(message, index)
    return text.role == "assistant" and not text.content.strip()
