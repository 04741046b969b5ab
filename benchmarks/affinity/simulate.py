"""Chats through the real router before simulated engines, on a clock that nobody waits for.

Only the engines and the people are made up: the tables, the heartbeats' snapshots, the router and
its policies are those that serve.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import mean, quantiles

from benchmarks.affinity.chats import Chat, Habits, Message, chats
from benchmarks.affinity.engine import Engine, Request, Size, block_hashes
from kodolly.api.request import ApiRequest
from kodolly.api.routing.policies import POLICIES, Lottery, Policy, ShortestQueue
from kodolly.api.routing.router import Router
from kodolly.api.routing.table import WorkerTable
from kodolly.protocol.wire import Extension, Snapshot, WorkerRow, WorkerState

MODEL = "m"
BEAT, SAMPLE = 1.0, 0.5
WARM_UP = 0.25  # of the time, in which nothing is counted


@dataclass(frozen=True)
class Setup:
    """One run. `hop`: each turn comes to another replica of the API, the worst a balancer can do."""

    name: str
    policy: str
    workers: int = 4
    replicas: int = 1
    hop: bool = False


@dataclass
class Outcome:
    """What one run showed. Times in seconds."""

    setup: Setup
    turns: int
    cached: float  # of all prompt tokens
    served_worst: float  # requests served, worst worker by mean
    busy_worst: float  # requests open on average over time, worst worker by mean
    moment_worst: float  # the worst worker by the mean at every moment, on average
    open_mean: float  # requests open at a worker, on average
    first_token: tuple[float, float]  # p50, p99

    def figures(self) -> dict[str, object]:
        """As a JSON object."""
        return {
            "setup": self.setup.name,
            "turns": self.turns,
            "cached_token_rate": round(self.cached, 4),
            "worst_by_mean_served": round(self.served_worst, 3),
            "worst_by_mean_open": round(self.busy_worst, 3),
            "worst_by_mean_at_every_moment": round(self.moment_worst, 3),
            "open_requests_a_worker": round(self.open_mean, 2),
            "first_token_p50_ms": round(self.first_token[0] * 1000, 1),
            "first_token_p99_ms": round(self.first_token[1] * 1000, 1),
        }


@dataclass
class _Totals:
    opened: list[list[int]] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    turns: int = 0


class Simulation:
    """One setup and one stream of people; `run` is called once."""

    def __init__(self, setup: Setup, habits: Habits, size: Size, seed: int) -> None:
        self.now = 0.0
        self._setup, self._habits, self._seed = setup, habits, seed
        self._engines = {f"http://w{n}": Engine(f"http://w{n}", size) for n in range(setup.workers)}
        self._tables = [WorkerTable(lambda: self.now) for _ in range(setup.replicas)]
        self._routers = [
            Router(table, _policy(setup.policy, seed + n)) for n, table in enumerate(self._tables)
        ]
        self._told = dict.fromkeys(self._engines, 0)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._busy: set[str] = set()
        self._lots = random.Random(seed)
        self._totals = _Totals()
        self._marks: dict[str, tuple[int, int, int]] = {}

    def run(self) -> Outcome:
        """Everything until the last chat begins; what is still open then is not counted."""
        self._tell()
        for number, name in enumerate(self._engines):
            self._at(BEAT * number / len(self._engines), lambda name=name: self._beat(name))  # type: ignore[misc]
        for chat in chats(self._habits, self._setup.replicas, self._seed):
            self._at(chat.begins, lambda chat=chat: self._ask(chat, 0))  # type: ignore[misc]
        self._at(self._habits.seconds * WARM_UP, self._mark)
        end = self._habits.seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, act = heapq.heappop(self._events)
            act()
        return self._outcome()

    def _at(self, time: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._order), act))

    # people

    def _ask(self, chat: Chat, turn: int) -> None:
        question, answer, _ = chat.turns[turn]
        chat.said.append(question)
        messages = [chat.system, *chat.said]
        replica = chat.replica
        if self._setup.hop:
            replica = self._lots.randrange(self._setup.replicas)
        stack = ExitStack()
        worker = stack.enter_context(self._routers[replica].book(_call(messages)))
        prompt, prompt_tokens = block_hashes(messages)
        whole, _ = block_hashes([*messages, answer])

        def done() -> None:
            stack.close()
            chat.said.append(answer)
            if turn + 1 < len(chat.turns):
                pause = chat.turns[turn + 1][2]
                self._at(self.now + pause, lambda: self._ask(chat, turn + 1))

        engine = self._engines[worker.row.name]
        engine.waiting.append(Request(prompt, prompt_tokens, whole, answer.tokens, self.now, done))
        if engine.name not in self._busy:
            self._busy.add(engine.name)
            self._step(engine)

    # engines

    def _step(self, engine: Engine) -> None:
        if not engine.load:
            self._busy.discard(engine.name)
            return
        seconds, ended = engine.step(self.now)

        def after() -> None:
            for request in ended:
                if self._marks:
                    self._totals.turns += 1
                    self._totals.first.append((request.first_token or self.now) - request.arrived)
                request.done()
            self._step(engine)

        self._at(self.now + seconds, after)

    def _beat(self, name: str) -> None:
        self._told[name] = self._engines[name].load
        self._tell()
        self._at(self.now + BEAT, lambda: self._beat(name))

    def _tell(self) -> None:
        rows = [
            WorkerRow(
                name=name,
                model_names=[MODEL],
                speed=1,
                queue_length=told,
                state=WorkerState.READY,
                kodolly=Extension(heart_beat_interval=BEAT),
            )
            for name, told in self._told.items()
        ]
        for table in self._tables:
            table.apply(Snapshot(epoch="e", version=1, workers=rows))

    # figures

    def _mark(self) -> None:
        """The warm-up is over: what was counted by now is taken off in the end."""
        self._marks = {
            name: (e.prompt_tokens, e.cached_tokens, e.served) for name, e in self._engines.items()
        }
        self._sample()

    def _sample(self) -> None:
        self._totals.opened.append([e.load for e in self._engines.values()])
        self._at(self.now + SAMPLE, self._sample)

    def _outcome(self) -> Outcome:
        engines, marks = self._engines, self._marks
        prompt = sum(e.prompt_tokens - marks[n][0] for n, e in engines.items())
        cached = sum(e.cached_tokens - marks[n][1] for n, e in engines.items())
        served = [e.served - marks[n][2] for n, e in engines.items()]
        opened = self._totals.opened
        by_worker = [mean(column) for column in zip(*opened, strict=True)]
        cuts = quantiles(self._totals.first, n=100)
        return Outcome(
            self._setup,
            self._totals.turns,
            cached / prompt,
            max(served) / mean(served),
            max(by_worker) / mean(by_worker),
            mean(max(row) / mean(row) for row in opened if any(row)),
            mean(by_worker),
            (cuts[49], cuts[98]),
        )


def _call(messages: list[Message]) -> ApiRequest:
    said = [{"role": m.role, "content": f"message {m.number}"} for m in messages]
    body = {"model": MODEL, "messages": said}
    return ApiRequest("/v1/chat/completions", body, "id", chat=True)


def _policy(name: str, seed: int) -> Policy:
    """The policy of that name; lots are the same in every run."""
    if name == "lottery":
        return Lottery(random.Random(seed))
    if name == "shortest_queue":
        return ShortestQueue(random.Random(seed))
    return POLICIES[name]()
