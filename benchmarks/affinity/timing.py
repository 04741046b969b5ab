"""What one routing decision costs, beside reading the request it is made for."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from kodolly.api.request import ApiRequest
from kodolly.api.routing.router import Router
from kodolly.api.routing.table import WorkerTable
from kodolly.protocol.wire import Snapshot, WorkerRow, WorkerState

CALLS, ROUNDS = 200, 9


@dataclass(frozen=True)
class Timing:
    """CPU microseconds a call: routed as a new chat, routed again, read as JSON; best of the rounds."""

    workers: int
    turns: int
    new: float
    again: float
    json: float


@dataclass(frozen=True)
class Timings:
    """All of them."""

    rows: list[Timing]

    def markdown(self) -> str:
        """A table."""
        head = [
            "## What a decision costs\n",
            f"CPU microseconds a call, best of {ROUNDS} rounds of {CALLS}; reading the JSON beside it.\n",
            "| workers | turns in the chat | new chat | next turn | JSON |",
            "|---|---|---|---|---|",
        ]
        rows = [
            f"| {r.workers} | {r.turns} | {r.new:.0f} | {r.again:.0f} | {r.json:.0f} |"
            for r in self.rows
        ]
        return "\n".join([*head, *rows, ""])

    def figures(self) -> list[dict[str, float]]:
        """For a JSON file."""
        return [{k: round(v, 1) for k, v in vars(row).items()} for row in self.rows]


def dispatch_times() -> Timings:
    """Small and large fleets, short and long chats."""
    return Timings([_timed(workers, turns) for workers in (4, 64) for turns in (1, 20)])


def _timed(workers: int, turns: int) -> Timing:
    table = WorkerTable()
    rows = [
        WorkerRow(
            name=f"http://10.0.0.{n}:21002",
            model_names=["m"],
            speed=1,
            queue_length=0,
            state=WorkerState.READY,
        )
        for n in range(workers)
    ]
    table.apply(Snapshot(epoch="e", version=1, workers=rows))
    router = Router(table)
    numbers = itertools.count()
    fresh = [[_body(next(numbers), turns) for _ in range(CALLS)] for _ in range(ROUNDS)]
    again = [orjson.dumps(_body(-1, turns))] * CALLS

    def route(bodies: list[Any]) -> None:
        for body in bodies:
            with router.book(ApiRequest("/v1/chat/completions", body, "id", chat=True)):
                pass

    # Bodies read from bytes, so that no string knows its hash yet.
    def read(bodies: list[bytes]) -> list[Any]:
        return [orjson.loads(body) for body in bodies]

    packed = [[orjson.dumps(body) for body in group] for group in fresh]
    return Timing(
        workers,
        turns,
        _best(route, (read(group) for group in packed)),
        _best(route, (read(again) for _ in range(ROUNDS))),
        _best(read, iter(packed)),
    )


def _best(act: Callable[[list[Any]], object], groups: Iterator[list[Any]]) -> float:
    best = float("inf")
    for group in groups:
        began = time.thread_time()
        act(group)
        best = min(best, (time.thread_time() - began) / len(group))
    return best * 1e6


def _body(number: int, turns: int) -> dict[str, Any]:
    """A chat of Korean text, 200 characters a message."""
    messages = [{"role": "system", "content": "당신은 친절한 조수입니다. " * 20}]
    for turn in range(2 * turns - 1):
        text = f"{number} {turn} " + "가나다라마바사아자차 " * 18
        messages.append({"role": "assistant" if turn % 2 else "user", "content": text})
    return {"model": "m", "messages": messages}
