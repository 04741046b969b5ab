"""The conversation, in Gradio's form and in OpenAI's.

The only copy is in the browser: a list of Gradio's chat messages. A *notice* is a message of our own
in that list (an error, a hint). It is shown, but never sent to a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from kodolly.web.texts import Language, say

Role = Literal["user", "assistant"]
NOTICE = "kodolly-notice"
MESSAGES_LIMIT = 1000  # messages of one conversation


class Message(TypedDict, total=False):
    """A chat message in Gradio's shape, its content plain text."""

    role: Role
    content: str
    metadata: dict[str, str]
    options: list[dict[str, str]]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def notice(language: Language, key: str, *, retry: bool = True, **fields: object) -> Message:
    """A notice with the sentence `key` of texts.py. `retry`: with a button to try again."""
    # As one line, it is a quotation in Markdown, which looks different from an answer.
    text = "> " + " ".join(say(language, key, **fields).split())
    message: Message = {"role": "assistant", "content": text, "metadata": {"id": NOTICE}}
    if retry:
        message["options"] = [{"value": "retry", "label": say(language, "retry")}]
    return message


def read(value: Any) -> list[Message]:
    """The conversation in a browser's value. Everything that is not the text of a message is ignored."""
    if not isinstance(value, list):
        return []
    messages = []
    for item in value[-MESSAGES_LIMIT:]:
        if isinstance(item, Mapping) and item.get("role") in ("user", "assistant"):
            messages.append(_read_message(item))
    return messages


def without_notices(history: Sequence[Message]) -> list[Message]:
    """The conversation without our own notices."""
    return [message for message in history if not is_notice(message)]


def is_notice(message: Message) -> bool:
    return message.get("metadata", {}).get("id") == NOTICE


def up_to_last_question(history: Sequence[Message]) -> list[Message]:
    """The conversation up to and with the last user message; [] if there is none."""
    for end in range(len(history), 0, -1):
        if history[end - 1].get("role") == "user":
            return list(history[:end])
    return []


def for_api(history: Iterable[Message], system: str) -> list[dict[str, str]]:
    """The conversation as OpenAI messages.

    Messages of the same role in a row are joined, since many templates need alternating turns.
    """
    messages: list[dict[str, str]] = []
    if system.strip():
        messages.append({"role": "system", "content": system})
    for message in history:
        if is_notice(message) or not message["content"]:
            continue
        if messages and messages[-1]["role"] == message["role"]:
            messages[-1]["content"] += "\n\n" + message["content"]
        else:
            messages.append({"role": message["role"], "content": message["content"]})
    return messages


def _read_message(item: Mapping[str, Any]) -> Message:
    role: Role = "user" if item["role"] == "user" else "assistant"
    message: Message = {"role": role, "content": _text(item.get("content"))}
    metadata = item.get("metadata")
    if isinstance(metadata, Mapping) and metadata.get("id") == NOTICE:
        message["metadata"] = {"id": NOTICE}
    return message


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return ""
    parts = [
        part if isinstance(part, str) else part.get("text", "")
        for part in content
        if isinstance(part, str | Mapping)
    ]
    return "".join(part for part in parts if isinstance(part, str))
