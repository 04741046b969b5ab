"""Requests whose values make arithmetic break down, and honest ones that must not notice them."""

import asyncio
import json
from typing import Any

import aiohttp

Json = dict[str, Any]
QUESTIONS = ("대한민국의 수도는 어디인가요?", "One, two,", "빨강, 파랑,", "The sky is")


def poison(vocabulary: int) -> list[Json]:
    """Eighteen sets of sampling values for a model of so many tokens."""
    every = list(range(vocabulary))
    values: list[Json] = [
        {"repetition_penalty": 1e-38},
        {"repetition_penalty": 1e-38, "temperature": 0},
        {"repetition_penalty": 1e-38, "top_p": 1e-30},
        {"repetition_penalty": 1e-38, "min_p": 1.0},
        {"repetition_penalty": 5e-324},
        {"repetition_penalty": 1.7e308},
        {"min_tokens": 1, "stop_token_ids": every},
        {"min_tokens": 1, "stop_token_ids": every, "temperature": 0},
        {"min_tokens": 1, "stop_token_ids": every, "ignore_eos": True},
        {"temperature": 1e-45},
        {"temperature": 1e-5, "repetition_penalty": 1e-38},
        {"temperature": 2.0, "top_p": 5e-324},
        {"logit_bias": dict.fromkeys(map(str, every), -100)},
        {"logit_bias": dict.fromkeys(map(str, every), 100), "repetition_penalty": 1e-38},
        {"presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1e-38},
        {"seed": 2**63 - 1, "n": 2, "repetition_penalty": 1e-38},
        {"top_k": 2**31 - 1, "repetition_penalty": 1e-38},
        {"min_p": 5e-324, "temperature": 1e-45, "repetition_penalty": 1e-38},
    ]
    return [{"max_tokens": 4, **each} for each in values]


async def ask(http: aiohttp.ClientSession, body: Json) -> tuple[int, str]:
    """(status, text) of a chat; the status of an error within a stream is the one its event names."""
    async with http.post("/v1/chat/completions", json=body) as answer:
        if not body.get("stream"):
            data = await answer.json()
            return answer.status, "" if "error" in data else data["choices"][0]["message"][
                "content"
            ]
        text = ""
        async for line in answer.content:
            if line.startswith(b'data: {"error"'):
                return 500, line.decode()
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                text += "".join(c["delta"].get("content") or "" for c in event["choices"])
        return answer.status, text


def chat(model: str, question: str, **values: Any) -> Json:
    """A chat request."""
    return {"model": model, "messages": [{"role": "user", "content": question}], **values}


async def honest_calls_survive(url: str, model: str, vocabulary: int) -> None:
    """Eight honest calls, streamed and whole, beside eighteen poison ones get what they get alone.

    No poison request gets a 5xx either: it is answered, or refused as the client's own mistake.
    """
    async with aiohttp.ClientSession(url) as http:
        honest = [
            chat(model, question, temperature=0, max_tokens=24, stream=stream)
            for question in QUESTIONS
            for stream in (False, True)
        ]
        alone = [await ask(http, body) for body in honest]
        assert {status for status, _ in alone} == {200}
        poisonous = [
            chat(model, f"독 {number}", stream=bool(number % 2), **values)
            for number, values in enumerate(poison(vocabulary))
        ]
        both = await asyncio.gather(*(ask(http, body) for body in [*honest, *poisonous]))
        assert list(both[: len(honest)]) == alone
        statuses = [status for status, _ in both[len(honest) :]]
        assert set(statuses) <= {200, 400}, list(zip(poisonous, both[8:], strict=True))
