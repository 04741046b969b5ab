"""Changes to a request on its way to an engine: the template's stop strings, and safe text."""

from __future__ import annotations

from typing import Any

from kodolly.errors import BadRequest
from kodolly.protocol.wire import Extension
from kodolly_templates import TemplateError, get_template, list_templates, neutralise

# Characters of text from which preparing a request may hold the event loop for too long.
LONG_TEXT = 2**16
PART_OVERHEAD = 64


def is_long(body: dict[str, Any]) -> bool:
    """Whether a chat has so much text, or so many parts of it, that `for_engine` takes a while."""
    size = 0
    for message in body.get("messages") or ():
        for name in ("content", "context"):
            value = message.get(name) or ""
            parts = [value] if isinstance(value, str) else [part.get("text") for part in value]
            size += sum(len(part) for part in parts if isinstance(part, str))
            size += PART_OVERHEAD * len(parts)
    return size > LONG_TEXT


def for_engine(body: dict[str, Any], extension: Extension, *, chat: bool) -> dict[str, Any]:
    """The body an engine gets: as the client sent it, but for what the template demands.

    Only a chat is touched: a plain completion is the client's own prompt, keys and all.
    """
    if not chat:
        return body
    changes: dict[str, Any] = {}
    if extension.stop:
        changes["stop"] = merged_stop(body.get("stop"), extension.stop)
    messages = body["messages"]
    if any(message.get("context") for message in messages):
        messages = changes["messages"] = _with_contexts(messages, extension.template)
    if extension.guard:
        changes["messages"] = [_guard(m, extension.guard) for m in messages]
    return body | changes


def stops_of(body: dict[str, Any], extension: Extension) -> list[str]:
    """The stop strings under which an answer is made: the client's and, in a chat, the template's."""
    return merged_stop(body.get("stop"), extension.stop if "messages" in body else [])


def _with_contexts(messages: list[dict[str, Any]], template: str | None) -> list[dict[str, Any]]:
    """Dolly's `context` folded into the content as the template words it: engines drop the field.

    Raises BadRequest for a context where none can be.
    """
    if template not in list_templates():
        return [append_context(message) for message in messages]
    try:
        return get_template(template).flatten(messages)
    except TemplateError as error:
        raise BadRequest(f"messages: {error}", param="messages") from error


def append_context(message: dict[str, Any]) -> dict[str, Any]:
    """A message with its context after the content, for models that know no such key.

    Raises BadRequest for a context without a content.
    """
    plain = {key: value for key, value in message.items() if key != "context"}
    context, content = message.get("context"), message.get("content")
    if not context:
        return plain
    if content is None:
        raise BadRequest("messages: a context needs a content beside it", param="messages")
    if isinstance(content, str):
        return plain | {"content": f"{content}\n\n{context}"}
    return plain | {"content": [*content, {"type": "text", "text": f"\n\n{context}"}]}


def merged_stop(stop: str | list[str] | None, template_stops: list[str]) -> list[str]:
    """The client's stop strings and the template's, each once."""
    stops = [stop] if isinstance(stop, str) else stop or []
    return list(dict.fromkeys([*stops, *template_stops]))


def _guard(message: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """A message whose text holds no template key or special token as an engine would read it."""
    content = message.get("content")
    if isinstance(content, str):
        safe = neutralise(content, keys)
        return message if safe is content else message | {"content": safe}
    if isinstance(content, list):
        return message | {"content": [_guard_part(part, keys) for part in content]}
    return message


def _guard_part(part: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    text = part.get("text")
    return part | {"text": neutralise(text, keys)} if isinstance(text, str) else part
