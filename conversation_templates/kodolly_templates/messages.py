"""From OpenAI-style messages to a checked dialogue: at most one system text, then exchanges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from .errors import TemplateError

Messages = Sequence[Mapping[str, Any]]


class Message(TypedDict):
    """One OpenAI-style message; `context` is KoDolly's addition and belongs to users only."""

    role: str  # "system" (first message only), "user" or "assistant"
    content: str | list[dict[str, Any]]  # text, or OpenAI's parts of type "text"
    context: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a user asked and, unless it is still open, what was answered."""

    instruction: str
    context: str = ""
    response: str | None = None


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A whole conversation in order, starting with the user."""

    system: str
    exchanges: tuple[Exchange, ...]

    @property
    def is_open(self) -> bool:
        """Whether the last word was the user's, so that a model may answer."""
        return self.exchanges[-1].response is None


def plain_text(content: object, index: int) -> str:
    """The text of one message's content; parts are joined by a newline, as vLLM joins them.

    Raises TemplateError, naming the message, when a part is not text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TemplateError(f"message {index}: content is neither text nor a list of parts")
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise TemplateError(f"message {index}: only content parts of type text are supported")
    return "\n".join(str(part.get("text", "")) for part in content)


def read_dialogue(messages: Messages, *, strip: bool = True) -> Dialogue:
    """Check the order of roles and strip every text, or leave them as they are.

    Raises TemplateError naming the index of the first message that is out of order or empty.
    """
    first = 1 if messages and messages[0].get("role") == "system" else 0
    system = plain_text(messages[0].get("content"), 0) if first else ""
    if len(messages) == first:
        raise TemplateError(f"message {first}: a conversation needs a user message")
    texts = [_turn_text(messages[i], i, first) for i in range(first, len(messages))]
    clean = str.strip if strip else str
    exchanges = []
    for i in range(0, len(texts), 2):
        context = messages[first + i].get("context") or ""
        response = clean(texts[i + 1]) if i + 1 < len(texts) else None
        exchanges.append(Exchange(clean(texts[i]), clean(str(context)), response))
    return Dialogue(clean(system), tuple(exchanges))


def read_open_dialogue(messages: Messages, *, strip: bool = True) -> Dialogue:
    """As `read_dialogue`, for a conversation a model is to answer: the user spoke last."""
    dialogue = read_dialogue(messages, strip=strip)
    if not dialogue.is_open:
        raise TemplateError(f"message {len(messages) - 1}: the last message must be the user's")
    return dialogue


def _turn_text(message: Mapping[str, Any], index: int, first: int) -> str:
    expected = "assistant" if (index - first) % 2 else "user"
    if message.get("role") != expected:
        raise TemplateError(f"message {index}: expected role {expected}, got {message.get('role')}")
    text = plain_text(message.get("content"), index)
    if not text.strip():
        raise TemplateError(f"message {index}: content is empty")
    return text
