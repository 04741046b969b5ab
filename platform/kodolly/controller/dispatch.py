"""FastChat's two ways to choose a worker, for clients that call /get_worker_address.

KoDolly's own API chooses by itself from the watch stream and never calls it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from kodolly.protocol.wire import WorkerRow


class Dispatcher:
    """Chooses among the ready workers of a model by `shortest_queue` or `lottery`."""

    def __init__(self, method: str, rng: random.Random | None = None) -> None:
        self._method = method
        self._rng = rng or random.Random()
        # Worker name -> (queue length in its last heartbeat, requests sent there since).
        self._recent: dict[str, tuple[int, int]] = {}

    def choose(self, workers: Sequence[WorkerRow], model: str) -> str:
        """The base URL of the chosen worker, or "" when none serves the model."""
        candidates = [w for w in workers if w.serves(model)]
        if not candidates:
            return ""
        if self._method == "lottery":
            return self._rng.choices(candidates, [w.speed for w in candidates])[0].name
        best = min(candidates, key=lambda w: (w.queue_length + self._uncounted(w)) / w.speed)
        self._recent[best.name] = (best.queue_length, self._uncounted(best) + 1)
        return best.name

    def reset(self, worker: str) -> None:
        """The worker reported its queue just now: it counts every request sent there before."""
        self._recent.pop(worker, None)

    def _uncounted(self, worker: WorkerRow) -> int:
        """Requests sent to a worker that its last heartbeat does not count yet."""
        queue_length, count = self._recent.get(worker.name, (worker.queue_length, 0))
        return count if queue_length == worker.queue_length else 0
