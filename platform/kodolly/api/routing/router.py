"""From a call to the worker that serves it, with the load booked for exactly as long as it is."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from kodolly.api.errors import RETRY_AFTER
from kodolly.api.routing.policies import POLICIES, Policy
from kodolly.api.routing.table import Worker, WorkerTable
from kodolly.errors import ModelNotFound, NoWorker

if TYPE_CHECKING:
    from kodolly.api.request import Call


class Booked:
    """A worker for a call, whose load is booked within the `with`."""

    __slots__ = ("_weight", "_worker")

    def __init__(self, worker: Worker, weight: int) -> None:
        self._worker = worker
        self._weight = weight

    def __enter__(self) -> Worker:
        self._worker.book(self._weight)
        return self._worker

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.release(self._weight)


class Router:
    """Chooses among the workers a table knows. `policy` is a name of --routing, or one's own."""

    def __init__(self, table: WorkerTable, policy: str | Policy = "affinity") -> None:
        self._table = table
        self._policy = POLICIES[policy]() if isinstance(policy, str) else policy

    def dispatched(self, call: Call, avoid: frozenset[str] = frozenset()) -> Booked:
        """The worker for a call, never one named in `avoid`, to be entered at once.

        Raises ModelNotFound, or NoWorker when none is ready or all are to be avoided.
        """
        return Booked(self._policy.choose(call, self._candidates(call.model, avoid)), call.choices)

    def _candidates(self, model: str, avoid: frozenset[str]) -> list[Worker]:
        workers = self._table.trusted(model)
        if avoid:
            workers = [w for w in workers if w.row.name not in avoid]
            # A suspect that has not failed this very call is better than none.
            workers = workers or [w for w in self._table.able(model) if w.row.name not in avoid]
        if workers:
            return workers
        if not self._table.models() or self._table.knows(model):
            raise NoWorker(
                f"No worker of model '{model}' can take a request now. Try again in a moment.",
                headers=RETRY_AFTER,
            )
        raise ModelNotFound(
            f"The model '{model}' does not exist. Available: {', '.join(self._table.models())}.",
            param="model",
        )
