"""Pieces of a stream become snapshots of the whole text."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from kodolly.web.throttle import text_snapshots


async def pieces(*texts: str, error: Exception | None = None) -> AsyncIterator[str]:
    for text in texts:
        await asyncio.sleep(0)
        yield text
    if error is not None:
        raise error


async def test_every_state_begins_with_the_one_before() -> None:
    """States only grow, and the last is the whole text."""
    states = [state async for state in text_snapshots(pieces("안", "녕", "하세요"), interval=0)]
    assert all(after.startswith(before) for before, after in pairwise(states))
    assert states[-1] == "안녕하세요"


async def test_an_error_comes_after_the_text() -> None:
    """What was said before an error is given, then the error is raised."""
    states: list[str] = []

    async def listen() -> None:
        async for state in text_snapshots(
            pieces("반", "쪽", error=RuntimeError("lost")), interval=0
        ):
            states.append(state)

    with pytest.raises(RuntimeError, match="lost"):
        await listen()
    assert states[-1] == "반쪽"


async def test_silence_still_beats() -> None:
    """With nothing new the same state is given again, so that a listener who left is noticed."""
    forever = asyncio.Event()

    async def silent() -> AsyncIterator[str]:
        yield "하나"
        await forever.wait()

    states = text_snapshots(silent(), interval=0, repeat_after=0.01)
    seen = [await anext(states) for _ in range(4)]
    await states.aclose()
    assert seen[-2:] == ["하나", "하나"]


async def test_closing_closes_the_source() -> None:
    """Whoever stops listening ends the source before aclose returns."""
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            while True:
                await asyncio.sleep(0)
                yield "."
        finally:
            ended.set()

    states = text_snapshots(endless(), interval=0)
    await anext(states)
    await anext(states)
    await states.aclose()
    assert ended.is_set()
