"""Turns a fast stream of pieces into a slower stream of the whole text so far."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

INTERVAL = 0.05  # seconds between two snapshots; people see no difference if it is shorter
# Seconds after which an unchanged text is yielded again: only then does Gradio notice that the
# browser has gone.
REPEAT_AFTER = 1.0


async def text_snapshots(
    pieces: AsyncIterator[str], interval: float = INTERVAL, repeat_after: float = REPEAT_AFTER
) -> AsyncGenerator[str, None]:
    """Yields the text so far, at most every `interval` and at least every `repeat_after` seconds.

    The last text is the whole one. If `pieces` raises, the error is raised after that. Closing or
    cancelling this iterator closes `pieces` first.
    """
    parts: list[str] = []
    new_piece = asyncio.Event()
    reader = asyncio.create_task(_read(pieces, parts, new_piece))
    try:
        while not reader.done():
            yield "".join(parts)
            await _wait_for_either(reader, new_piece, repeat_after)
            new_piece.clear()
            await asyncio.wait({reader}, timeout=interval)
        yield "".join(parts)
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def _read(pieces: AsyncIterator[str], parts: list[str], new_piece: asyncio.Event) -> None:
    try:
        async for piece in pieces:
            parts.append(piece)
            new_piece.set()
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


async def _wait_for_either(task: asyncio.Task[None], event: asyncio.Event, timeout: float) -> None:
    waiter = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiter}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
