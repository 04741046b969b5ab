"""The requests to the engine: plain chats, JSON schemas and tool calls, greedy and sampled."""

from __future__ import annotations

from typing import Any

MODEL = "demo"
MAX_TOKENS = 32
KINDS = ("plain", "json", "tool")
SUBJECTS = ("바다", "a library", "겨울", "kimchi stew", "기차", "the river Han", "우주", "a cat")
_CITY = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "note": {"type": "string", "enum": ["맑음", "흐림", "비"]},
        "days": {"type": "integer"},
    },
    "required": ["name", "note", "days"],
    "additionalProperties": False,
}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": _CITY}}
_TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city", "parameters": _CITY},
}
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "json": {"response_format": _FORMAT},
    "tool": {"tools": [_TOOL], "tool_choice": "required"},
}


def request(kind: str, number: int, *, greedy: bool) -> dict[str, Any]:
    """The body of trial `number`. A sampled one has a seed, so that repeating it is a fair try."""
    subject = SUBJECTS[number % len(SUBJECTS)]
    question = f"Tell me about {subject}, part {number}. 짧게 대답해 주세요."
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "return_token_ids": True,
        "repetition_penalty": 1.1,
        **EXTRAS[kind],
    }
    return body | ({"temperature": 0} if greedy else {"temperature": 0.8, "seed": 1000 + number})
