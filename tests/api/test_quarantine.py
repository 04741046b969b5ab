"""Whoever was passed over is asked again: no worker is left out for good because it failed once."""

from typing import Any

import aiohttp
from support.clock import Clock
from support.processes import eventually
from support.scripted_engine import Script

from kodolly.api.routing.table import SUSPECT_S, WorkerTable
from kodolly.protocol.wire import Snapshot, WorkerRow, WorkerState

from .conftest import Stack

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "안녕"}]}


def told(*states: WorkerState) -> Snapshot:
    """Workers w0, w1 ... in these states."""
    rows = [
        WorkerRow(name=f"w{n}", model_names=["m"], speed=1, queue_length=0, state=state)
        for n, state in enumerate(states)
    ]
    return Snapshot(epoch="e", version=1, workers=rows)


def trusted(table: WorkerTable) -> list[str]:
    return [worker.row.name for worker in table.trusted("m")]


def test_a_suspect_is_trusted_again_beside_others_that_are_well() -> None:
    """Time alone clears it, also if nobody tells anything new of it."""
    clock = Clock()
    table = WorkerTable(clock)
    table.apply(told(WorkerState.READY, WorkerState.READY))
    table.suspect(table.all()[0])
    assert trusted(table) == ["w1"]

    clock.now += SUSPECT_S + 0.1
    assert trusted(table) == ["w0", "w1"]


def test_a_suspect_that_came_back_is_trusted_at_once() -> None:
    """A change of state is newer than the suspicion."""
    table = WorkerTable(Clock())
    table.apply(told(WorkerState.READY, WorkerState.READY))
    table.suspect(table.all()[0])
    table.apply(told(WorkerState.STARTING, WorkerState.READY))
    table.apply(told(WorkerState.READY, WorkerState.READY))
    assert trusted(table) == ["w0", "w1"]


async def test_a_worker_that_failed_a_call_serves_again_when_it_is_well(stack: Stack) -> None:
    """An engine that refused for a while gets its calls back, with nothing said or restarted."""
    engines = [await stack.add(Script()) for _ in range(2)]
    sick = engines[0]
    sick.script.fail_status = 503
    url = f"{stack.url}/v1/chat/completions"
    async with aiohttp.ClientSession() as http:

        async def ask(number: int) -> None:
            content = f"질문 {number}"
            body = CHAT | {"messages": [{"role": "user", "content": content}]}
            async with http.post(url, json=body) as answer:
                assert answer.status == 200

        numbers = iter(range(10_000))
        while not sick.requests:  # which of them a question goes to, its URL decides too
            await ask(next(numbers))
        sick.script.fail_status = None

        async def is_back() -> bool:
            await ask(next(numbers))
            return sick.requests[-1].outcome == "finished"

        await eventually(is_back)
