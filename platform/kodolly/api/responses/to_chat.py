"""From a response's request to the chat that answers it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kodolly.api.responses.request import ResponseRequest, engine_fields
from kodolly.errors import ApiError, BadRequest

Json = dict[str, Any]
# Chat field -> the field of the Responses API that it comes from.
ORIGINS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "verbosity": "text.verbosity",
    "logprobs": "include",
}
ROLES = ("user", "assistant", "system", "developer")


def input_items(request: ResponseRequest) -> list[Json]:
    """The request's input as items; a text is one message of the user's."""
    if request.input is None:
        return []
    if isinstance(request.input, str):
        return [_message_item("user", request.input)]
    return checked_items(request.input, "input")


def checked_items(items: list[Json], field: str) -> list[Json]:
    """The items of a request's `field`, each of a type that a chat can hold. Raises BadRequest."""
    return [_checked(item, f"{field}[{at}]") for at, item in enumerate(items)]


def chat_body(request: ResponseRequest, items: Iterable[Json]) -> Json:
    """The body of the streamed chat completion. `items`: all input, earlier turns first.

    Raises BadRequest for what no chat can hold.
    """
    messages = [{"role": "system", "content": request.instructions}] if request.instructions else []
    messages += to_messages(items)
    if not messages:
        raise BadRequest("input: holds no message", param="input")
    tools, choice = _tools(request)
    optional = {
        "max_completion_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "tools": tools or None,
        "tool_choice": choice if tools else None,
        "parallel_tool_calls": request.parallel_tool_calls if tools else None,
        "response_format": _response_format(request),
        "service_tier": request.service_tier,
        "user": request.user,
        "logprobs": True if request.wants_logprobs else None,
        "top_logprobs": request.top_logprobs or None,
        "reasoning_effort": request.reasoning.effort if request.reasoning else None,
        "verbosity": request.text.verbosity if request.text else None,
    }
    return {
        **engine_fields(request),
        "model": request.model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        **{name: value for name, value in optional.items() if value is not None},
    }


def in_terms_of_responses(error: ApiError) -> ApiError:
    """The same error with the field's name in the Responses API."""
    if error.param:
        name = next((n for n in ORIGINS if error.param == n or error.param.startswith(n + "[")), "")
        if name:
            error.param = ORIGINS[name] + error.param[len(name) :]
            if error.message.startswith(name):
                error.message = ORIGINS[name] + error.message[len(name) :]
    return error


def to_messages(items: Iterable[Json]) -> list[Json]:
    """The messages of a chat. What the assistant said and called in one turn is one message."""
    messages: list[Json] = []
    for item in items:
        kind = item.get("type", "message")
        if kind == "function_call_output":
            content = _content(item.get("output"), "output")
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})
        elif kind == "reasoning":
            if text := _reasoning_text(item):
                _assistant(messages)["reasoning"] = text
        elif kind == "function_call":
            _assistant(messages).setdefault("tool_calls", []).append(_tool_call(item))
        elif item["role"] == "assistant":
            turn = _assistant(messages, with_content=False)
            turn.update(_assistant_content(item["content"]))
        else:
            content = _content(item["content"], "content")
            messages.append({"role": item["role"], "content": content})
    return [message for message in messages if set(message) != {"role", "reasoning"}]


def _assistant(messages: list[Json], *, with_content: bool = True) -> Json:
    """The assistant's message to be filled: the last one, or a new one.

    `with_content`: one that has a text already will do.
    """
    last = messages[-1] if messages else {}
    is_open = last.get("role") == "assistant" and (
        with_content or not ({"content", "tool_calls"} & last.keys())
    )
    if not is_open:
        messages.append({"role": "assistant"})
    return messages[-1]


def _assistant_content(content: Any) -> Json:
    if isinstance(content, str):
        return {"content": content}
    texts = [str(part.get("text") or part.get("refusal") or "") for part in content]
    return {"content": "".join(texts)}


def _tool_call(item: Json) -> Json:
    function = {"name": item["name"], "arguments": item.get("arguments") or "{}"}
    return {"id": item["call_id"], "type": "function", "function": function}


def _reasoning_text(item: Json) -> str:
    parts = item.get("content") or item.get("summary") or []
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _content(content: Any, where: str) -> str | list[Json]:
    """A message's content: a text as it is, one text part as a text, several parts as a list."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"input: {where} should be a text or a list of parts", param="input")
    parts = [_part(part) for part in content]
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _part(part: Any) -> Json:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": str(part.get("text", ""))}
    if kind == "refusal":
        return {"type": "text", "text": str(part.get("refusal", ""))}
    if kind == "input_image" and isinstance(part.get("image_url"), str):
        image = {"url": part["image_url"]}
        if part.get("detail"):
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": part.get("input_audio")}
    raise BadRequest(
        f"input: a content part of type {kind!r} is not supported: use input_text, or input_image"
        " with an image_url",
        param="input",
    )


def _checked(item: Json, where: str) -> Json:
    kind = item.get("type", "message" if "role" in item else "item_reference")
    if kind == "message":
        if item.get("role") not in ROLES:
            raise BadRequest(
                f"{where}.role: should be one of {', '.join(ROLES)}, not {item.get('role')!r}",
                param=f"{where}.role",
            )
        return {**item, "type": "message", "content": _parts(item.get("content"), where, item)}
    needed = {
        "function_call": ("call_id", "name"),
        "function_call_output": ("call_id",),
        "reasoning": (),
        "item_reference": ("id",),
    }
    if kind not in needed:
        raise BadRequest(
            f"{where}.type: {kind!r} is not supported: use message, function_call,"
            " function_call_output, reasoning or item_reference",
            param=f"{where}.type",
        )
    for name in needed[kind]:
        if not isinstance(item.get(name), str):
            raise BadRequest(f"{where}.{name}: should be a text", param=f"{where}.{name}")
    if kind == "function_call_output":
        _content(item.get("output"), "output")
    return {**item, "type": kind}


def _parts(content: Any, where: str, item: Json) -> list[Json]:
    """A message's content as parts, as OpenAI lists it."""
    if isinstance(content, str):
        return list(_message_item(item["role"], content)["content"])
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise BadRequest(f"{where}.content: should be a text or a list", param=f"{where}.content")
    _content(content, "content")
    return content


def _message_item(role: str, text: str) -> Json:
    part: Json = {"type": "output_text" if role == "assistant" else "input_text", "text": text}
    if role == "assistant":
        part["annotations"] = []
    return {"type": "message", "role": role, "status": "completed", "content": [part]}


def _response_format(request: ResponseRequest) -> Json | None:
    wanted = request.text.format if request.text else None
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "json_object"}
    if wanted.schema_ is None:
        raise BadRequest("text.format.schema: is missing", param="text.format.schema")
    schema = {
        "name": wanted.name or "response",
        "description": wanted.description,
        "schema": wanted.schema_,
        "strict": wanted.strict,
    }
    return {
        "type": "json_schema",
        "json_schema": {name: value for name, value in schema.items() if value is not None},
    }


def _tools(request: ResponseRequest) -> tuple[list[Json], Any]:
    """The tools and the tool choice of the chat."""
    tools = list(_functions(request.tools or []))
    choice = request.tool_choice
    if choice is None or isinstance(choice, str):
        return tools, choice
    kind, name = choice.get("type"), choice.get("name")
    if kind == "function" and isinstance(name, str):
        return tools, {"type": "function", "function": {"name": name}}
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list):
        names = {each.get("name") for each in choice["tools"] if isinstance(each, dict)}
        allowed = [tool for tool in tools if tool["function"]["name"] in names]
        return allowed, choice.get("mode", "auto")
    raise BadRequest(f"tool_choice: {kind!r} is not supported", param="tool_choice")


def _functions(tools: list[Json]) -> Iterator[Json]:
    for at, tool in enumerate(tools):
        if tool.get("type") != "function":
            raise BadRequest(
                f"tools[{at}].type: only functions are supported, not {tool.get('type')!r}",
                param=f"tools[{at}].type",
            )
        if not isinstance(tool.get("name"), str):
            raise BadRequest(f"tools[{at}].name: should be a text", param=f"tools[{at}].name")
        names = ("name", "description", "parameters", "strict")
        function = {name: tool[name] for name in names if tool.get(name) is not None}
        yield {"type": "function", "function": function}
