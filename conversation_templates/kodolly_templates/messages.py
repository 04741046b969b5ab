"""From OpenAI-style messages to a dialogue: a system text, then turns of user and assistant.

Every conversation that OpenAI's API accepts can be said, as far as it is text:

- `developer` is `system`. Those before the first turn are the system text; a later one, and what a
  tool answered, stands where it was said, as a part of the user's turn.
- Neighbours of one side are one turn, with a blank line between their texts.
- A message without text is dropped, such as an assistant's that only called a tool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from .errors import TemplateError

SEPARATOR = "\n\n"  # between paragraphs, turns and joined texts
SYSTEM_ROLES = ("system", "developer")
ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool", "function")
PART_TYPES = ("text", "refusal")  # parts of a content that are text, in the field of the same name

Messages = Sequence[Mapping[str, Any]]


class Message(TypedDict):
    """One OpenAI-style message; `context` is KoDolly's addition and belongs to users only."""

    role: str  # one of ROLES
    content: str | list[dict[str, Any]]  # text, or OpenAI's parts that are text
    context: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Text:
    """One message's own text, stripped. `context`: the text that it is about, or ""."""

    role: str
    content: str
    context: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says before the other does. `messages`: indices (first, one past the last)."""

    is_answer: bool
    text: str
    messages: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A whole conversation in order; user and assistant take turns, and either may begin."""

    system: str
    turns: tuple[Turn, ...]

    @property
    def ends_with_answer(self) -> bool:
        """Whether the last word was the assistant's, as training needs it."""
        return bool(self.turns) and self.turns[-1].is_answer


def plain_text(content: object, index: int) -> str:
    """The text of one message's content; parts are joined by a newline, as vLLM joins them.

    Raises TemplateError, naming the message, when a part is not text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TemplateError(f"message {index}: content is neither text nor a list of parts")
    return "\n".join(_part_text(part, index) for part in content)


def _part_text(part: object, index: int) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get(kind) if isinstance(part, Mapping) and kind in PART_TYPES else None
    if not isinstance(text, str):
        raise TemplateError(f"message {index}: only content parts of type text are supported")
    return text


def read_text(message: Mapping[str, Any], index: int, *, strip: bool = True) -> Text:
    """One message's text. Raises TemplateError naming the message: a role or content that is none."""
    role, clean = message.get("role"), str.strip if strip else str
    if role not in ROLES:
        raise TemplateError(f"message {index}: unknown role {role}")
    content = clean(plain_text(message.get("content"), index))
    context = clean(str(message.get("context") or "")) if role == "user" else ""
    if context.strip() and not content.strip():
        raise TemplateError(f"message {index}: a context needs a content beside it")
    return Text(role, content, context)


def read_dialogue(
    messages: Messages, write: Callable[[Text], str] | None = None, *, strip: bool = True
) -> Dialogue:
    """The dialogue of some messages. `write`: a message's text with its context, if it has one.

    Raises TemplateError naming the first message that cannot be said, or when none holds any text.
    """
    system: list[str] = []
    turns: list[tuple[bool, list[str], int, int]] = []
    for index, text in _texts(messages, strip=strip):
        said = write(text) if write else text.content
        is_answer = text.role == "assistant"
        if text.role in SYSTEM_ROLES and not turns:
            system.append(said)
        elif turns and turns[-1][0] is is_answer:
            turns[-1] = (is_answer, [*turns[-1][1], said], turns[-1][2], index + 1)
        else:
            turns.append((is_answer, [said], index, index + 1))
    if not system and not turns:
        raise TemplateError("the conversation has no text")
    return Dialogue(
        SEPARATOR.join(system),
        tuple(Turn(side, SEPARATOR.join(said), (a, b)) for side, said, a, b in turns),
    )


def _texts(messages: Messages, *, strip: bool) -> Iterator[tuple[int, Text]]:
    for index, message in enumerate(messages):
        text = read_text(message, index, strip=strip)
        if text.content.strip():
            yield index, text
