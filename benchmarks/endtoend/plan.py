"""The sizes of a run, and what is asked in it."""

from dataclasses import dataclass
from typing import Any

from benchmarks.chaos.plan import MODEL

TARGET = 0.98  # of the bare engine's tokens a second
CONCURRENCY = (1, 4, 8)
ENGINE, KODOLLY = "engine", "kodolly"
WAYS = (ENGINE, KODOLLY)
CHAT = "/v1/chat/completions"
SILENCE = 120.0  # a stream that says nothing this long has failed
SUBJECTS = ("바다", "도서관", "겨울", "기차", "한강", "우주", "고양이", "시장")


@dataclass(frozen=True, slots=True)
class Plan:
    """How many blocks of four slices for each concurrency, how long, and the tokens of an answer."""

    blocks: int = 24
    seconds: float = 280.0
    tokens: int = 192


def order(block: int) -> tuple[str, str, str, str]:
    """Who is asked in which slice: A B B A, then B A A B, so that neither is always the first."""
    first, second = WAYS if block % 2 == 0 else WAYS[::-1]
    return first, second, second, first


def body(number: int, tokens: int) -> dict[str, Any]:
    """A request that no other one shares its prompt with, and whose answer has exactly `tokens`.

    `min_tokens` as well: the template's stop strings, which KoDolly adds, must end none early.
    """
    question = f"{number:06d}번 이야기: {SUBJECTS[number % len(SUBJECTS)]}에 대해 말해 주세요."
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "min_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
