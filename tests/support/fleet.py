"""Replicas of the API's router before workers that exist only as numbers, on a clock of their own.

The workers tell their queues by heartbeats, so a replica knows of the others' requests late.
"""

import heapq
import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from kodolly.api.request import ApiRequest
from kodolly.api.routing.policies import Policy
from kodolly.api.routing.router import Router
from kodolly.api.routing.table import Worker, WorkerTable
from kodolly.protocol.wire import Extension, Snapshot, WorkerRow, WorkerState

MODEL = "m"


def chat(*texts: str, system: str = "") -> ApiRequest:
    """A chat whose messages are, in turn, the user's and the assistant's."""
    messages = [{"role": "system", "content": system}] if system else []
    for number, text in enumerate(texts):
        messages.append({"role": "assistant" if number % 2 else "user", "content": text})
    return ApiRequest(
        "/v1/chat/completions", {"model": MODEL, "messages": messages}, "id", chat=True
    )


def completion(prompt: Any, **fields: Any) -> ApiRequest:
    """A plain completion."""
    body = {"model": MODEL, "prompt": prompt, **fields}
    return ApiRequest("/v1/completions", body, "id", chat=False)


@dataclass
class Engine:
    """What really runs at one worker, whoever sent it."""

    name: str
    speed: float = 1.0
    running: int = 0
    told: int = 0
    state: WorkerState = WorkerState.READY

    def row(self) -> WorkerRow:
        return WorkerRow(
            name=self.name,
            model_names=[MODEL],
            speed=self.speed,
            queue_length=self.told,
            state=self.state,
            kodolly=Extension(heart_beat_interval=1),
        )


@dataclass
class Replica:
    """One process of the API."""

    table: WorkerTable
    router: Router


@dataclass(order=True)
class _Event:
    at: float
    number: int
    act: Callable[[], None] = field(compare=False)


class Fleet:
    """Workers of the given speeds behind some replicas; `now` is in seconds."""

    def __init__(
        self,
        speeds: Sequence[float],
        policy: Callable[[], Policy | str],
        *,
        replicas: int = 1,
        beat: float = 1.0,
    ) -> None:
        self.now = 0.0
        self.engines = {f"http://w{n}": Engine(f"http://w{n}", s) for n, s in enumerate(speeds)}
        tables = [WorkerTable(lambda: self.now) for _ in range(replicas)]
        self.replicas = [Replica(table, Router(table, policy())) for table in tables]
        self._beat = beat
        self._events: list[_Event] = []
        self._numbers = itertools.count()
        self.tell()
        for number, engine in enumerate(self.engines.values()):
            self._beats(engine, beat * number / len(self.engines))

    @property
    def loads(self) -> list[int]:
        """Requests at every worker."""
        return [engine.running for engine in self.engines.values()]

    def open(self, call: ApiRequest, seconds: float, *, replica: int = 0) -> Worker:
        """Sends a call that takes some time; the worker it went to."""
        stack = ExitStack()
        worker = stack.enter_context(self.replicas[replica].router.book(call))
        engine = self.engines[worker.row.name]
        engine.running += 1

        def close() -> None:
            engine.running -= 1
            stack.close()

        self.at(self.now + seconds, close)
        return worker

    def at(self, time: float, act: Callable[[], None]) -> None:
        """Does something at a time to come."""
        heapq.heappush(self._events, _Event(time, next(self._numbers), act))

    def advance(self, seconds: float) -> None:
        """Lets time pass, with all that happens in it."""
        end = self.now + seconds
        while self._events and self._events[0].at <= end:
            event = heapq.heappop(self._events)
            self.now = event.at
            event.act()
        self.now = end

    def tell(self) -> None:
        """The controller's snapshot, to every replica."""
        snapshot = Snapshot(epoch="e", version=1, workers=[e.row() for e in self.engines.values()])
        for replica in self.replicas:
            replica.table.apply(snapshot)

    def _beats(self, engine: Engine, after: float) -> None:
        def beat() -> None:
            engine.told = engine.running
            self.tell()
            self._beats(engine, self._beat)

        self.at(self.now + after, beat)
