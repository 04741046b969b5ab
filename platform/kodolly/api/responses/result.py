"""The response object: what the client asked for, as OpenAI repeats it, and what came of it."""

from __future__ import annotations

from typing import Any

from kodolly.api.responses.request import ResponseRequest

Json = dict[str, Any]


def base_response(
    request: ResponseRequest, response_id: str, created_at: int, *, store: bool
) -> Json:
    """A response of which nothing is there yet. `created_at`: Unix time (s)."""
    text = request.text
    wanted = text.format if text else None
    shown = wanted.model_dump(by_alias=True, exclude_none=True) if wanted else {"type": "text"}
    reasoning = request.reasoning
    conversation = request.conversation_id
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "background": bool(request.background),
        "completed_at": None,
        "conversation": {"id": conversation} if conversation else None,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": None,
        "metadata": request.metadata or {},
        "model": request.model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": None,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": None,
        "service_tier": request.service_tier or "default",
        "store": store,
        "temperature": request.temperature,
        "text": {"format": shown, "verbosity": (text.verbosity if text else None) or "medium"},
        "tool_choice": request.tool_choice or "auto",
        "tools": [_tool(tool) for tool in request.tools or ()],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": request.top_p,
        "truncation": request.truncation or "disabled",
        "usage": None,
        "user": request.user,
    }


def _tool(tool: Json) -> Json:
    return {"description": None, "parameters": None, "strict": None, **tool}


def usage_of(chat_usage: Json | None) -> Json | None:
    """Token counts of a chat as a response has them; None if the engine gave none."""
    if not chat_usage:
        return None
    prompt = chat_usage.get("prompt_tokens_details") or {}
    answer = chat_usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": chat_usage.get("prompt_tokens") or 0,
        "input_tokens_details": {
            "cached_tokens": prompt.get("cached_tokens") or 0,
            "cache_write_tokens": 0,
        },
        "output_tokens": chat_usage.get("completion_tokens") or 0,
        "output_tokens_details": {"reasoning_tokens": answer.get("reasoning_tokens") or 0},
        "total_tokens": chat_usage.get("total_tokens") or 0,
    }


# Reason of a chat -> that of a response that is incomplete.
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def outcome(end: Json, finish: str | None) -> tuple[str, Json]:
    """A response's last status, and the fields that go with it. `end`: its last delta."""
    fields: Json = {"usage": usage_of(end.get("usage")), "completed_at": None}
    if end.get("error"):
        return "failed", fields | {"error": end["error"]}
    if end.get("cancelled"):
        return "cancelled", fields
    if finish in INCOMPLETE:
        return "incomplete", fields | {"incomplete_details": {"reason": INCOMPLETE[finish]}}
    return "completed", fields | {"completed_at": end["end"]}


def with_result(base: Json, status: str, result: Json) -> Json:
    """A response with what the store keeps of its end."""
    return base | {"status": status} | result
