"""What an answer must show for a field to have been honoured, and the verdict on each answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.compatibility.requests import Case

Json = dict[str, Any]
WORKS, REFUSED, IGNORED, UNCLEAR, BROKEN = "works", "refused", "ignored", "unclear", "broken"


@dataclass
class Answer:
    """An answer whole or streamed, in one form. `error`: OpenAI's error object, or {}."""

    status: int
    texts: dict[int, str] = field(default_factory=dict)
    choices: list[Json] = field(default_factory=list)  # every choice of every event
    usage: Json = field(default_factory=dict)
    body: Json = field(default_factory=dict)
    error: Json = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.texts.get(0, "")

    @property
    def ids(self) -> list[int]:
        return [token for choice in self.choices for token in choice.get("token_ids") or ()]


def read(status: int, content: str) -> Answer:
    """An answer's body or its events."""
    answer = Answer(status)
    lines = [line[5:].strip() for line in content.split("\n") if line.startswith("data:")]
    for data in lines or [content]:
        if data == "[DONE]":
            continue
        try:
            body = json.loads(data)
        except ValueError:
            continue
        answer.body |= body
        answer.error = body.get("error") or answer.error
        answer.usage = body.get("usage") or answer.usage
        for choice in body.get("choices") or ():
            answer.choices.append(choice)
            message = choice.get("message") or choice.get("delta") or {}
            text = message.get("content") or choice.get("text") or ""
            index = choice["index"]
            answer.texts[index] = answer.texts.get(index, "") + text
    return answer


def _has(name: str) -> Callable[[Answer, Answer, Case], bool]:
    return lambda a, base, case: any(choice.get(name) for choice in a.choices)


def _stops(case: Case) -> list[str]:
    stop = case.body["stop"]
    return [stop] if isinstance(stop, str) else stop


def _prompt_logprobs(a: Answer, base: Answer, case: Case) -> bool:
    return bool(a.body.get("prompt_logprobs")) or _has("prompt_logprobs")(a, base, case)


EFFECTS: dict[str, Callable[[Answer, Answer, Case], bool]] = {
    "same": lambda a, base, case: a.text == base.text or case.body.get("temperature", 1) != 0,
    "answer": lambda a, base, case: bool(a.choices),
    "never": lambda a, base, case: False,
    "other": lambda a, base, case: a.text != base.text,
    "stopped": lambda a, base, case: not any(stop in a.text for stop in _stops(case)),
    "stop kept": lambda a, base, case: a.text.endswith("Paris"),
    "one token": lambda a, base, case: a.usage.get("completion_tokens", 1) == 1,
    "full length": lambda a, base, case: a.usage["completion_tokens"] == case.body["max_tokens"],
    "only allowed": lambda a, base, case: bool(a.ids) and set(a.ids) <= {260, 253},
    "no Paris": lambda a, base, case: "Paris" not in a.text,
    "two choices": lambda a, base, case: a.texts.keys() == {0, 1},
    "usage": lambda a, base, case: bool(a.usage),
    "token ids": _has("token_ids"),
    "three prompt tokens": lambda a, base, case: a.usage.get("prompt_tokens") == 3,
    "prompt logprobs": _prompt_logprobs,
    "json": lambda a, base, case: a.text.lstrip().startswith("{"),
    "choice": lambda a, base, case: a.text.strip() in ("Paris", "Rome"),
    "digits": lambda a, base, case: bool(re.fullmatch("[0-9]{3}", a.text)),
    "logprobs": _has("logprobs"),
    "longer prompt": lambda a, base, case: a.usage["prompt_tokens"] > base.usage["prompt_tokens"],
    "tool call": lambda a, base, case: "tool_calls" in json.dumps(a.choices),
    "echo": lambda a, base, case: a.text.startswith(str(case.body.get("prompt", "What is"))),
}


def verdict(case: Case, answer: Answer, base: Answer) -> str:
    """What became of a request."""
    if answer.status >= 500 or answer.status == 0:
        return BROKEN
    if answer.status >= 400 or answer.error:
        said = f"{answer.error.get('param')} {answer.error.get('message')}"
        return REFUSED if case.field in said else UNCLEAR
    if case.wrong or not EFFECTS[case.effect](answer, base, case):
        return IGNORED
    return WORKS
