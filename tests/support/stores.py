"""What tests put into a store, and what they wait for."""

import asyncio
import itertools
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

from kodolly.errors import KodollyError
from kodolly.store.records import ResponseRecord
from kodolly.store.store import Store

OWNER = "owner"
PATIENCE = 30.0  # seconds that a busy machine may need for what takes a moment

_ids = itertools.count()


def record(**fields: Any) -> ResponseRecord:
    """A response that runs."""
    values: dict[str, Any] = {
        "id": f"resp_{os.getpid()}_{next(_ids)}",
        "owner": OWNER,
        "model": "m",
        "status": "in_progress",
        "request": {"model": "m"},
        "created_at": time.time(),
    }
    return ResponseRecord(**values | fields)


def message(name: str, text: str = "안녕") -> dict[str, Any]:
    """An item."""
    return {"id": name, "type": "message", "content": text}


async def commit(store: Store, response_id: str, seq: int, *deltas: Any) -> KodollyError | None:
    """Append events, and wait until they are committed; the error if they are not."""
    future: asyncio.Future[KodollyError | None] = asyncio.get_running_loop().create_future()
    store.flusher.append(response_id, seq, deltas, [seq], lambda error, _: future.set_result(error))
    async with asyncio.timeout(PATIENCE):
        return await future


async def follow_to_end(store: Store, response_id: str, after: int = -1) -> list[Any]:
    """All events after number `after`, once the response is finished; their numbers have no gap."""
    events = []
    async with asyncio.timeout(PATIENCE):
        async for piece in store.follower.follow(response_id, after):
            events += piece
    assert [seq for seq, _ in events] == list(range(after + 1, after + 1 + len(events)))
    return [delta for _, delta in events]


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """What `condition` returns once it is true."""
    async with asyncio.timeout(PATIENCE):
        while not (value := await condition()):
            await asyncio.sleep(0.02)
        return value
