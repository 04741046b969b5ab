"""The store of several processes: one is killed, one is stopped, and PostgreSQL goes away for a while."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.postgres import Postgres, running_postgres
from support.stores import OWNER, commit, record, until

from kodolly.errors import StoreUnavailable
from kodolly.store.store import Store

pytestmark = pytest.mark.stack
NewStore = Callable[..., Any]
TESTS = Path(__file__).parents[1]
AWAY = 30.0  # seconds
WITHIN = (
    10.0  # seconds for a takeover, on a busy machine; benchmarks/store prints how long it takes
)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """One server for all tests here."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path, postgres: Postgres) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite3'}"
    return await postgres.new_database()


@pytest.fixture
async def new_store(url: str) -> AsyncIterator[NewStore]:
    """Opens stores of that database, and closes them after the test."""
    async with contextlib.AsyncExitStack() as own:
        yield lambda **options: own.enter_async_context(Store(url, **options))


class Process:
    """A process that runs responses, and the lines that it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def read(self) -> None:
        """Collect lines until it ends."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().strip())

    async def has_said(self, start: str) -> str:
        """The first line that begins so."""

        async def found() -> str:
            return next((line for line in self.lines if line.startswith(start)), "")

        return str(await until(found))


@contextlib.asynccontextmanager
async def running(url: str, *response_ids: str) -> AsyncIterator[Process]:
    """A process that makes these responses; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "support.store_process", url, *response_ids),
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent / 'platform'}"},
        stdout=asyncio.subprocess.PIPE,
    )
    one = Process(process)
    reading = asyncio.create_task(one.read())
    try:
        await one.has_said("created")
        yield one
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await reading


async def test_one_process_takes_over_each_response_of_a_killed_one(
    new_store: NewStore, url: str
) -> None:
    """After kill -9, within the watch time and a little: all committed events, one winner a response."""
    watchers = [await new_store() for _ in range(3)]
    taken: list[str] = []
    ids = [f"resp_killed_{number}" for number in range(5)]
    times: list[float] = []

    def take(claimed: Sequence[str]) -> None:
        taken.extend(claimed)
        times.append(time.monotonic())

    for watcher in watchers:
        watcher.leases.on_takeover = take
    async with running(url, *ids) as process:
        await until(lambda: _has_events(watchers[0], ids[-1]))
        process.process.kill()
        killed = time.monotonic()
        await until(lambda: _all_in(taken, ids))
    assert times[-1] - killed < WITHIN
    assert Counter(taken) == Counter(ids)
    await asyncio.sleep(1.2)  # two beats more: nobody claims them again
    assert Counter(taken) == Counter(ids)

    for response_id in ids:
        stored = await watchers[0].responses.get(response_id, OWNER)
        winner = next(each for each in watchers if each.leases.process_id == stored.run_by)
        seq = (await winner.responses.events(response_id)).next_seq
        assert await commit(winner, response_id, seq, "and on") is None
        assert await winner.responses.finish(response_id, "completed", {}, [])


async def test_a_process_that_was_stopped_is_fenced(new_store: NewStore, url: str) -> None:
    """SIGSTOP, takeover, SIGCONT: not one event more gets in, and it is told so."""
    store = await new_store()
    taken: list[str] = []
    store.leases.on_takeover = taken.extend
    async with running(url, "resp_stopped") as process:
        await until(lambda: _has_events(store, "resp_stopped"))
        await _stop_between_commits(store, process.process.pid)
        await until(lambda: _all_in(taken, ["resp_stopped"]))
        seq = (await store.responses.events("resp_stopped")).next_seq
        assert await commit(store, "resp_stopped", seq, "new owner") is None
        os.kill(process.process.pid, signal.SIGCONT)

        assert await process.has_said("refused") == "refused resp_stopped Fenced"
        await process.has_said("fenced")
    assert (await store.responses.events("resp_stopped")).deltas[seq:] == ["new owner"]


async def _stop_between_commits(store: Any, pid: int) -> None:
    """Stop a process where it holds no lock of the file: a SQLite that it does would stop everybody."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(0.1)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(1), store.database.write():
                return
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.03)


async def test_postgresql_is_away_for_half_a_minute(postgres: Postgres) -> None:
    """Running answers go on without it, new ones are refused; then all is well and nobody was taken for dead."""
    url = await postgres.new_database()
    async with Store(url, retry_time=2) as store, Store(url) as other:
        taken: list[str] = []
        store.leases.on_takeover = other.leases.on_takeover = taken.extend
        stored = record()
        await store.responses.create(stored, [])
        assert await commit(store, stored.id, 0, "a") is None
        reading = other.follower.follow(stored.id)
        assert await anext(reading) == [(0, "a")]
        postgres.stop()
        stopped = time.monotonic()
        try:
            assert isinstance(await commit(store, stored.id, 1, "b"), StoreUnavailable)
            assert isinstance(await commit(store, stored.id, 2, "c"), StoreUnavailable)
            with pytest.raises(StoreUnavailable):
                await store.responses.finish(stored.id, "completed", {}, [])
            with pytest.raises(StoreUnavailable):
                await store.responses.create(record(), [])
            await asyncio.sleep(max(0.0, stopped + AWAY - time.monotonic()))
        finally:
            postgres.start()

        async def is_failed() -> bool:
            with contextlib.suppress(StoreUnavailable):
                after = await other.responses.get(stored.id, OWNER)
                return after is not None and after.status == "failed"
            return False

        await until(is_failed)
        assert [piece async for piece in reading] == []  # the reader elsewhere is told of the end
        again = record()
        await store.responses.create(again, [])
        following = other.follower.follow(again.id)
        assert await commit(store, again.id, 0, "a") is None
        assert await anext(following) == [(0, "a")]
        assert taken == []


async def _has_events(store: Any, response_id: str) -> bool:
    stored = await store.responses.get(response_id, OWNER)
    return stored is not None and stored.last_seq >= 2


async def _all_in(taken: list[str], ids: list[str]) -> bool:
    return set(ids) <= set(taken)
