"""The policies of --routing, by name: each chooses one of the workers that could take a request.

Every policy sees loads with this process's own bookings in them. The requests of other API
processes show in heartbeats only, a moment late: if every process corrected the whole of an
imbalance, together they would turn it over. So each weighs it by its own share of the traffic.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from kodolly.api.routing.prefix import prefixes, rank, root
from kodolly.api.routing.table import Worker

if TYPE_CHECKING:
    from kodolly.api.request import ApiRequest

# A worker keeps its conversations until its load is this many times its fair share, and one.
BOUND = 1.25
# Conversations' prefixes remembered at most, about 90 bytes each, and the tables they are in.
MAX_PREFIXES = 2**16
TABLES = 16


class Policy(Protocol):
    """Chooses one of at least one worker; the caller books it."""

    def choose(self, request: ApiRequest, workers: Sequence[Worker]) -> Worker:
        """The worker for a request."""
        ...


class Lottery:
    """At random, each worker in proportion to its speed, whatever its load."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()

    def choose(self, request: ApiRequest, workers: Sequence[Worker]) -> Worker:
        """The worker for a request."""
        return self._rng.choices(workers, [w.row.speed for w in workers])[0]


class RoundRobin:
    """In turn, each worker in proportion to its speed, evenly spread; load does not count."""

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def choose(self, request: ApiRequest, workers: Sequence[Worker]) -> Worker:
        """The worker for a request."""
        names = {w.row.name for w in workers}
        credit = self._credit = {n: c for n, c in self._credit.items() if n in names}
        for worker in workers:
            name = worker.row.name
            credit[name] = credit.get(name, 0.0) + worker.row.speed
        chosen = max(workers, key=lambda w: credit[w.row.name])
        credit[chosen.row.name] -= sum(w.row.speed for w in workers)
        return chosen


class ShortestQueue:
    """The worker where one more request waits least; of equals, one at random."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()

    def choose(self, request: ApiRequest, workers: Sequence[Worker]) -> Worker:
        """The worker for a request."""
        loads = _own_view(workers)
        waits = [(load + 1) / w.row.speed for load, w in zip(loads, workers, strict=True)]
        least = min(waits)
        return self._rng.choice([w for w, t in zip(workers, waits, strict=True) if t == least])


class Affinity:
    """Back to the worker whose KV cache holds the conversation, while that one is not overloaded.

    The worker of the longest remembered prefix is taken if it is within the bound: `BOUND` times
    its fair share of the load and one, rounded up. A chat that has to leave goes where it waits
    least, and so does a new one; of workers within one request of each other the chat's root
    decides. A chat that another API process may have served goes by the root alone, which ranks the
    workers alike in every process.
    """

    def __init__(self, remembered: int = MAX_PREFIXES) -> None:
        self._last = PrefixMemory(remembered)

    def choose(self, request: ApiRequest, workers: Sequence[Worker]) -> Worker:
        """The worker for a request; it is remembered for the later turns of the conversation."""
        prompt = prefixes(request)
        free = _within_bound(workers)
        homes = self._homes(prompt.hashes)
        chosen = _first_of(homes, free)
        if chosen is None:
            elsewhere = not homes and (prompt.continued or any(w.foreign for w in workers))
            chosen = _by_root(request, free if elsewhere else _least_waiting(free))
        self._last.put(prompt.hashes[-1], chosen.row.name)
        return chosen

    def _homes(self, hashes: Sequence[int]) -> list[str]:
        """The workers that served prefixes of these, the longest prefix first."""
        served = map(self._last.get, reversed(hashes))
        return [name for name in served if name is not None]


class PrefixMemory:
    """The worker of each of the newest prefixes: at most `most`, at least 15 of 16 as many.

    Several tables, the oldest thrown away when the newest is full. One table that loses its oldest
    entry with each new one would look flat and grow: Python does not use a deleted place again, and
    makes the table anew, several times as large as its entries. Two large ones would swing by more
    than a megabyte.
    """

    def __init__(self, most: int) -> None:
        self._size = max(1, most // TABLES)
        self._tables: deque[dict[int, str]] = deque([{}], maxlen=TABLES)  # the newest first

    def __len__(self) -> int:
        return len(set().union(*self._tables))

    def get(self, key: int) -> str | None:
        """The worker of a prefix, if it is remembered."""
        for table in self._tables:
            if (name := table.get(key)) is not None:
                return name
        return None

    def put(self, key: int, name: str) -> None:
        """Remembers a prefix as the newest."""
        if len(self._tables[0]) >= self._size and key not in self._tables[0]:
            self._tables.appendleft({})
        self._tables[0][key] = name


def _within_bound(workers: Sequence[Worker]) -> Sequence[Worker]:
    """Workers that stay within the bound, rounded up, with one request more; never none."""
    load, speed = 1, 0.0
    for worker in workers:
        load += worker.inflight + worker.foreign
        speed += worker.row.speed
    if load == 1:
        return workers
    each = load / speed
    free = []
    for worker in workers:
        if worker.inflight + worker.foreign < BOUND * each * worker.row.speed + 1:
            free.append(worker)
    return free


def _first_of(names: Sequence[str], workers: Sequence[Worker]) -> Worker | None:
    """The worker of the first name that is among these."""
    for name in dict.fromkeys(names):
        for worker in workers:
            if worker.row.name == name:
                return worker
    return None


def _by_root(request: ApiRequest, workers: Sequence[Worker]) -> Worker:
    """The first of these by the root's rank."""
    if len(workers) == 1:
        return workers[0]
    of = root(request)
    return max(workers, key=lambda w: rank(of, w.row.name, w.row.speed))


def _least_waiting(workers: Sequence[Worker]) -> list[Worker]:
    """Workers within one request of the shortest wait."""
    pairs = [(w, load, w.row.speed) for w, load in zip(workers, _own_view(workers), strict=True)]
    least = min([(load + 1) / speed for _, load, speed in pairs])
    return [w for w, load, speed in pairs if load <= least * speed]


def _own_view(workers: Sequence[Worker]) -> list[float]:
    """Loads in which others' requests weigh as much as ours are of all."""
    own, foreign = 1, 0
    for worker in workers:
        own += worker.inflight
        foreign += worker.foreign
    share = own / (own + foreign)
    return [w.inflight + share * w.foreign for w in workers]


POLICIES: dict[str, Callable[[], Policy]] = {
    "affinity": Affinity,
    "shortest_queue": ShortestQueue,
    "lottery": Lottery,
    "round_robin": RoundRobin,
}
