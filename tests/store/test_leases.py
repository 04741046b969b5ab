"""A process keeps its responses while it beats, and loses them when it ends or is taken for dead.

tests/e2e/test_store_processes.py kills and stops real ones.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from support.stores import PATIENCE, commit, record, until

from kodolly.errors import Fenced, StoreUnavailable
from kodolly.store import leases
from kodolly.store.tables import processes, responses

NewStore = Callable[..., Any]


async def test_a_process_that_ends_in_order_is_followed_at_once(new_store: NewStore) -> None:
    """Its unfinished responses need not wait for the watch time."""
    store, other = await new_store(), await new_store()
    taken: list[str] = []
    other.leases.on_takeover = taken.extend
    stored = record()
    await store.responses.create(stored, [])
    started = time.monotonic()
    await store.close()
    await until(lambda: _all_in(taken, [stored.id]))
    assert time.monotonic() - started < leases.WATCH + PATIENCE


async def test_a_living_process_keeps_its_responses(new_store: NewStore) -> None:
    """Watched for longer than the watch time, nobody claims what is in hands."""
    store, other = await new_store(), await new_store()
    taken: list[str] = []
    other.leases.on_takeover = taken.extend
    stored = record()
    await store.responses.create(stored, [])
    await asyncio.sleep(leases.WATCH + 4 * leases.BEAT)
    assert taken == []
    assert await commit(store, stored.id, 0, "mine") is None


async def test_a_claim_is_taken_up_though_the_next_one_fails(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database goes away between two claims: the first response is not left to nobody."""
    store, other = await new_store(), await new_store()
    ids = []
    for _ in range(3):
        ids.append(record().id)
        await store.responses.create(record(id=ids[-1]), [])
    taken: list[str] = []
    write = other.database.write
    has_failed = False

    @contextlib.asynccontextmanager
    async def write_but_once() -> AsyncIterator[Any]:
        nonlocal has_failed
        async with other.database.read() as connection:
            own = responses.c.run_by == other.leases.process_id
            claimed = await connection.scalar(sa.select(sa.func.count()).where(own))
        if claimed == 1 and not has_failed:
            has_failed = True
            raise StoreUnavailable("gone")
        async with write() as connection:
            yield connection

    monkeypatch.setattr(other.database, "write", write_but_once)
    other.leases.on_takeover = taken.extend
    await store.close()
    await until(lambda: _all_in(taken, ids))
    assert has_failed
    assert len(taken) == 3


async def test_a_fenced_process_begins_again(new_store: NewStore) -> None:
    """Taken for dead, it gets a new lease: its old responses are refused, new ones are made."""
    store, other = await new_store(), await new_store()
    fenced = asyncio.Event()
    store.leases.on_fenced = fenced.set
    stored = record()
    await store.responses.create(stored, [])
    assert await commit(store, stored.id, 0, "a") is None
    process_id = store.leases.process_id

    async def is_declared_dead() -> bool:  # it may beat between the two
        beat = await _beat_of(other, process_id)
        return bool(await other.leases._declare_dead(process_id, beat))

    await until(is_declared_dead)
    async with asyncio.timeout(PATIENCE):
        await fenced.wait()

    assert isinstance(await commit(store, stored.id, 1, "b"), Fenced)
    with pytest.raises(Fenced):
        await store.responses.finish(stored.id, "completed", {}, [])
    again = record()
    await store.responses.create(again, [])
    assert await commit(store, again.id, 0, "a") is None


async def _beat_of(store: Any, process_id: str) -> int:
    async with store.database.read() as connection:
        rows = await connection.execute(sa.select(processes))
        return int(next(row.beat for row in rows if row.id == process_id))


async def _all_in(taken: list[str], ids: list[str]) -> bool:
    return set(ids) <= set(taken)
