"""A fast stream of pieces as a calm stream of growing text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

EVERY = 0.05  # seconds between two pictures of a text: faster than that nobody sees
BEAT = 1.0  # seconds after which an unchanged picture is given: whoever shows it can notice a leave


async def growing(
    pieces: AsyncIterator[str], every: float = EVERY, beat: float = BEAT
) -> AsyncGenerator[str, None]:
    """Yields the text so far, at most once in `every` and at least once in `beat` seconds.

    The last yield is the whole text, also when `pieces` ends in an error, which is then raised.
    Closing or cancelling this closes `pieces` before it returns.
    """
    parts: list[str] = []
    fresh = asyncio.Event()
    pump = asyncio.create_task(_pump(pieces, parts, fresh))
    try:
        while not pump.done():
            yield "".join(parts)
            await _either(pump, fresh, beat)
            fresh.clear()
            await asyncio.wait({pump}, timeout=every)
        yield "".join(parts)
        await pump
    finally:
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


async def _pump(pieces: AsyncIterator[str], parts: list[str], fresh: asyncio.Event) -> None:
    try:
        async for piece in pieces:
            parts.append(piece)
            fresh.set()
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


async def _either(pump: asyncio.Task[None], fresh: asyncio.Event, timeout: float) -> None:
    news = asyncio.create_task(fresh.wait())
    try:
        await asyncio.wait({pump, news}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        news.cancel()
