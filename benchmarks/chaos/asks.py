"""What the clients ask, and what the script says the answer must be, to the character."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from support.script import Script, chat_prompt

from benchmarks.chaos.plan import MODEL, Plan

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
SUBJECTS = ("바다", "도서관", "겨울", "김치찌개", "기차", "한강", "우주", "고양이")


@dataclass(frozen=True, slots=True)
class Expected:
    """One choice as it must be. `ids` are its tokens; None where they are not known."""

    text: str
    finish_reason: str
    ids: tuple[int, ...]


@dataclass(slots=True)
class Ask:
    """One request. `way`: raw (an event stream read as bytes), openai (the real library) or whole."""

    name: str
    way: str
    path: str
    body: dict[str, Any]
    expected: list[Expected] = field(default_factory=list)
    prompt_tokens: int | None = None

    @property
    def chat(self) -> bool:
        """Whether it is a chat and no bare completion."""
        return self.path == CHAT

    def wants(self, name: str) -> bool:
        """Whether the request asks for `logprobs` or `return_token_ids`."""
        return bool(self.body.get(name))


# Of thirteen streams: who asks what. The rest are plain chats.
KINDS = (
    "openai", "whole", "n", "stop", "logprobs", "ids", "completion", "usage", "", "",
    "schema", "tool", "two schemas",
)  # fmt: skip
_OBJECT = {"type": "object"}
SCHEMA = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "story", "schema": _OBJECT}}
}
TOOL = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": _OBJECT}}],
    "tool_choice": "required",
}


def scripted(plan: Plan, first: int = 0) -> Iterator[Ask]:
    """Requests without end, in a mixture of kinds, each of another prompt and length; numbered from `first`."""
    script = Script(model=MODEL)
    for name, value in plan.script().items():
        setattr(script, name, value)
    low, high = plan.tokens
    for number in itertools.count(first):
        kind = KINDS[number % len(KINDS)]
        limit = low + number * 37 % (high - low + 1)
        yield _ask(script, kind, number, limit)


def _ask(script: Script, kind: str, number: int, limit: int) -> Ask:
    subject = SUBJECTS[number % len(SUBJECTS)]
    question = f"{number}번째 질문: {subject} 이야기를 해 주세요."
    body: dict[str, Any] = {"model": MODEL, "max_tokens": limit, "temperature": 0}
    if kind == "completion":
        body |= {"prompt": question, "return_token_ids": True}
        prompt = script.encode(question)
    else:
        body["messages"] = [{"role": "user", "content": question}]
        prompt = script.encode(chat_prompt(body))
    if kind != "whole":
        body["stream"] = True
    body |= _extras(kind, script, prompt, limit)
    stop = body.get("stop") or []
    answer = script.answer(limit, [stop] if isinstance(stop, str) else stop, prompt=prompt)
    ids = tuple(step.token_id for step in answer.steps)
    way = kind if kind in ("openai", "whole") else "raw"
    calls = kind == "tool" and answer.finish_reason == "stop"
    choice = Expected(answer.text, "tool_calls" if calls else answer.finish_reason, ids)
    path = COMPLETION if kind == "completion" else CHAT
    return Ask(kind or "chat", way, path, body, [choice] * int(body.get("n", 1)), len(prompt))


def _extras(kind: str, script: Script, prompt: Sequence[int], limit: int) -> dict[str, Any]:
    usage = {"stream_options": {"include_usage": True}}
    match kind:
        case "n":
            return {"n": 2} | usage
        case "stop":
            return {"stop": _straddling(script, prompt, limit)}
        case "logprobs":
            return {"logprobs": True} | usage
        case "ids":
            return {"return_token_ids": True}
        case "openai" | "usage":
            return usage
        case "schema":
            return SCHEMA | usage
        case "tool":
            return TOOL | usage
        case "two schemas":
            return SCHEMA | {"n": 2, "return_token_ids": True} | usage
    return {}


def _straddling(script: Script, prompt: Sequence[int], limit: int) -> str:
    """A stop string of two tokens' text that comes up once, late in the answer.

    When the cut falls between those two tokens, no engine sees both of them.
    """
    answer = script.answer(limit, prompt=prompt)
    steps = answer.steps
    for at in range(len(steps) * 2 // 3, 0, -1):
        pair = steps[at - 1].text + steps[at].text
        if steps[at - 1].text and steps[at].text and answer.text.count(pair) == 1:
            return pair
    return steps[0].text


GREEDY_SCHEMA = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "story",
            "schema": {
                "type": "object",
                "properties": {"title": {"type": "string"}, "story": {"type": "string"}},
                "required": ["title", "story"],
            },
        },
    }
}


def greedy(plan: Plan) -> list[Ask]:
    """A fixed set of requests for a real engine; what they must say is asked of it undisturbed."""
    asks = []
    low, high = plan.tokens
    for number in range(2 * plan.streams):
        question = f"Tell me a short story, number {number}, about {SUBJECTS[number % 8]}."
        body: dict[str, Any] = {
            **(GREEDY_SCHEMA if number % 3 == 0 else {}),
            "model": MODEL,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": low + number * 7 % (high - low + 1),
            "temperature": 0,
            "stream": True,
            "return_token_ids": True,
            "stream_options": {"include_usage": True},
        }
        asks.append(Ask("greedy", "raw", CHAT, body))
    return asks
