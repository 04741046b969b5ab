"""FastChat's two ways to choose a worker, for clients that ask /get_worker_address.

KoDolly's own API routes by itself from the watch stream and never asks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from kodolly.protocol.wire import WorkerRow


class Dispatcher:
    """`shortest_queue` or `lottery` over the ready workers of a model."""

    def __init__(self, method: str, rng: random.Random | None = None) -> None:
        self._method = method
        self._rng = rng or random.Random()
        # Requests handed out since a worker's last heartbeat, by (name, queue length it told).
        self._handed: dict[str, tuple[int, int]] = {}

    def choose(self, workers: Sequence[WorkerRow], model: str) -> str:
        """The base URL of the worker to ask, or "" when none serves the model."""
        able = [w for w in workers if w.serves(model)]
        if not able:
            return ""
        if self._method == "lottery":
            return self._rng.choices(able, [w.speed for w in able])[0].name
        best = min(able, key=lambda w: (w.queue_length + self._pending(w)) / w.speed)
        self._handed[best.name] = (best.queue_length, self._pending(best) + 1)
        return best.name

    def heard(self, worker: str) -> None:
        """A worker told its queue just now, in which everything handed out before is counted."""
        self._handed.pop(worker, None)

    def _pending(self, worker: WorkerRow) -> int:
        """Requests handed to a worker that its heartbeat cannot know yet."""
        told, handed = self._handed.get(worker.name, (worker.queue_length, 0))
        return handed if told == worker.queue_length else 0
