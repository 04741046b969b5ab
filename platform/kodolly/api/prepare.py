"""Changes to a request on its way to an engine: the template's stop strings, and safe text."""

from __future__ import annotations

import asyncio
from typing import Any

from kodolly.errors import BadRequest
from kodolly.protocol import parameters
from kodolly.protocol.wire import Extension
from kodolly_templates import TemplateError, get_template, list_templates, neutralise
from kodolly_templates.tokenizer import TOKENIZER

# Characters of text from which preparing a request may hold the event loop for too long.
LONG_TEXT = 2**16
SHORT_BODY = 4096  # bytes of a body that cannot hold so much
PART_OVERHEAD = 64
# Fields beside the messages that a chat template writes into the prompt.
TEMPLATE_FIELDS = frozenset({"tools", "documents", "chat_template_kwargs"})


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


async def prepared(
    body: dict[str, Any],
    extension: Extension,
    *,
    chat: bool,
    token_ids: bool = False,
    size: int = 0,
) -> dict[str, Any]:
    """`for_engine` of a body. A long text is prepared in a thread, since the loop serves others.

    `token_ids`: the engine is to send the ids of its tokens. `size`: of the body in bytes, 0 if it
    was not counted.
    """
    if not 0 < size <= SHORT_BODY and is_long(body):
        body = await asyncio.to_thread(for_engine, body, extension, chat=chat)
    else:
        body = for_engine(body, extension, chat=chat)
    return body | {"return_token_ids": True} if token_ids else body


def for_engine(body: dict[str, Any], extension: Extension, *, chat: bool) -> dict[str, Any]:
    """The body an engine gets: as the client sent it, but for what template and engine demand.

    Only a chat is changed: a plain completion is the client's own prompt, keys and all. Raises
    BadRequest for a field that the engine would drop, and for tools that no prompt would hold.
    """
    if extension.engine == "vllm" and not extension.pooling:
        table = parameters.VLLM_DROPS_CHAT if chat else parameters.VLLM_DROPS_COMPLETION
        parameters.refuse_unhonoured(body, table, "vLLM")
    if not chat:
        return body
    knows = extension.template_knows
    if knows is not None:
        _refuse_unsaid(body, knows, extension.template)
    changes: dict[str, Any] = {}
    if extension.stop:
        changes["stop"] = stops_of(body, extension)
    messages = body["messages"]
    if any(message.get("context") for message in messages):
        messages = changes["messages"] = _with_contexts(messages, extension.template)
    if "developer" not in (knows or ()) and any(m["role"] == "developer" for m in messages):
        messages = changes["messages"] = [_as_system(message) for message in messages]
    if extension.guard:
        try:
            changes["messages"] = [_guard(m, extension.guard) for m in messages]
            for name in TEMPLATE_FIELDS & body.keys():
                changes[name] = _guard_value(body[name], extension.guard)
        except RecursionError:
            raise BadRequest("the request body is nested too deeply") from None
    return body | changes


def stops_of(body: dict[str, Any], extension: Extension) -> list[str]:
    """The stop strings under which an answer is made: the client's and, in a chat, the template's.

    A client that wants no end of the model's own (`ignore_eos`) does not get the template's either.
    """
    own = "messages" in body and not body.get("ignore_eos")
    return merged_stop(body.get("stop"), extension.stop if own else [])


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


def _refuse_unsaid(body: dict[str, Any], knows: list[str], template: str | None) -> None:
    """Raises BadRequest for tools or documents that the prompt would not hold."""
    for name in ("tools", "documents"):
        wanted = body.get(name) and not (name == "tools" and body.get("tool_choice") == "none")
        if wanted and name not in knows:
            which = "its own" if template == TOKENIZER else template
            raise BadRequest(
                f"{name}: the model's conversation template ({which}) has no place for them",
                param=name,
            )


def _as_system(message: dict[str, Any]) -> dict[str, Any]:
    return message | {"role": "system"} if message["role"] == "developer" else message


def _guard(message: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """A message whose text holds no template key or special token as an engine would read it."""
    content = message.get("content")
    if isinstance(content, str) and len(message) == 2:
        safe = neutralise(content, keys)
        return message if safe is content else message | {"content": safe}
    return {name: _guard_value(value, keys) for name, value in message.items()}


def _guard_value(value: Any, keys: list[str]) -> Any:
    """Every text within a value, such as the arguments of a tool call, but not the names of fields."""
    if isinstance(value, str):
        return neutralise(value, keys)
    if isinstance(value, list):
        return [_guard_value(item, keys) for item in value]
    if isinstance(value, dict):
        return {name: _guard_value(item, keys) for name, item in value.items()}
    return value
