"""From the answer to a chat to a whole message, and what both forms of an answer share."""

from __future__ import annotations

from typing import Any

import orjson

Json = dict[str, Any]

STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def message(answer: Json, stop_sequences: list[str]) -> Json:
    """The message for the body of a chat completion, which has one choice."""
    choice = answer["choices"][0]
    content = blocks(choice["message"])
    called = any(block["type"] == "tool_use" for block in content)
    reason, sequence = stop_reason(choice, stop_sequences, called=called)
    return head(answer) | {
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage(answer.get("usage")),
    }


def head(answer: Json) -> Json:
    """What a message is before it has content. `answer`: of a chat, or an event of one."""
    identity = str(answer.get("id") or "").removeprefix("chatcmpl-")
    return {
        "id": f"msg_{identity}",
        "type": "message",
        "role": "assistant",
        "model": answer.get("model"),
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def blocks(said: Json) -> list[Json]:
    """The content blocks of a chat's message."""
    content: list[Json] = []
    if thought := said.get("reasoning") or said.get("reasoning_content"):
        content.append({"type": "thinking", "thinking": thought, "signature": ""})
    if text := said.get("content"):
        content.append({"type": "text", "text": text})
    for call in said.get("tool_calls") or ():
        function = call["function"]
        content.append(
            {
                "type": "tool_use",
                "id": call["id"],
                "name": function["name"],
                "input": _input(function.get("arguments") or "{}"),
            }
        )
    return content


def stop_reason(choice: Json, stop_sequences: list[str], *, called: bool) -> tuple[str, str | None]:
    """Why an answer ended, and at which of the client's stop sequences.

    `called`: it holds a call of a tool. A stop string of the template ends a turn like any other end.
    """
    reason = choice.get("finish_reason")
    sequence = choice.get("stop_reason")
    if reason == "stop" and sequence in stop_sequences:
        return "stop_sequence", sequence
    if called and reason == "stop":
        return "tool_use", None
    return STOP_REASONS.get(str(reason), "end_turn"), None


def usage(counts: Json | None) -> Json:
    """Anthropic's counts of tokens for a chat's; those that come from a cache are among the input's."""
    counts = counts or {}
    return {
        "input_tokens": counts.get("prompt_tokens") or 0,
        "output_tokens": counts.get("completion_tokens") or 0,
    }


def _input(arguments: str) -> Json:
    """A call's arguments as an object. What is no JSON, as in an answer cut short, is kept as text."""
    try:
        value = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}
