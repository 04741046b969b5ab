"""The sum of an API's processes, and what becomes of the counts of one that has ended."""

import asyncio
import os

import pytest
from support.processes import eventually

from kodolly.observe.families import Family
from kodolly.observe.hub import VARIABLE, Hub, Link


def counts(number: int) -> list[Family]:
    """What a process has counted, and how many requests it has now."""
    total = Family("n_total", "counter", "N.").set(number)
    return [total, Family("running", "gauge", "R.").set(number)]


def values(families: list[Family]) -> dict[str, float]:
    return {key: value for each in families for key, value in each.samples.items()}


async def linked(
    hub: Hub, number: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Link, asyncio.Task[None]]:
    """A process's link, and what keeps it up to date."""
    sock = hub.connect()
    monkeypatch.setenv(VARIABLE, str(os.dup(sock.fileno())))
    sock.close()
    link = Link(lambda: counts(number))
    task = asyncio.create_task(link.run())
    await eventually(lambda: bool(link._reader))
    return link, task


async def test_any_process_tells_the_sum_and_the_dead_are_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Counters of a process that has ended stay in the sum; its gauges go with it."""
    hub = Hub(lambda: [Family("own", "gauge", "O.").set(1)])
    first, task = await linked(hub, 2, monkeypatch)
    second, other = await linked(hub, 3, monkeypatch)
    await eventually(lambda: values(hub.families()).get("n_total") == 5)
    for link in (first, second):
        assert values(await link.families()) == {"own": 1, "n_total": 5, "running": 5}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: values(hub.families()).get("running") == 3)
    assert values(await second.families()) == {"own": 1, "n_total": 5, "running": 3}
    assert values(await first.families()) == {"n_total": 2, "running": 2}, "alone, it has its own"
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    await eventually(lambda: not hub._tasks)


async def test_without_a_parent_a_process_tells_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a test, or where somebody else's server runs the application."""
    monkeypatch.delenv(VARIABLE, raising=False)
    link = Link(lambda: counts(4))
    await link.run()
    assert values(await link.families()) == {"n_total": 4, "running": 4}


async def test_half_a_line_of_a_killed_process_counts_for_nothing() -> None:
    """The state before it stays."""
    hub = Hub()
    with hub.connect() as sock:
        sock.sendall(
            b'{"families":[["n_total","counter","N.","sum",{"n_total":2}]],"question":0}\n'
        )
        sock.sendall(b'{"families":[["n_total","cou')
    await eventually(lambda: not hub._tasks)
    assert values(hub.families()) == {"n_total": 2}
