"""Chooses the worker for a request, and counts the request in its load for as long as it runs."""

from __future__ import annotations

import math
from enum import Enum, auto
from types import TracebackType

from kodolly.api.errors import RETRY_AFTER
from kodolly.api.request import TEXTLESS, ApiRequest
from kodolly.api.routing.policies import POLICIES, Policy, ShortestQueue
from kodolly.api.routing.table import Worker, WorkerTable
from kodolly.errors import ModelNotFound, NoWorker


class ForcedIds(Enum):
    """Whether a worker has to take forced token ids, which replay what another worker began."""

    PREFERRED = auto()
    REQUIRED = auto()


class Booking:
    """A worker for one request, which counts in the worker's load within the `with`."""

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
    """Chooses among the workers of a table. `policy`: a name of --routing, or a policy itself."""

    def __init__(self, table: WorkerTable, policy: str | Policy = "affinity") -> None:
        self._table = table
        self._policy = POLICIES[policy]() if isinstance(policy, str) else policy
        self._textless = ShortestQueue()  # no cache of a conversation helps them

    def book(
        self,
        request: ApiRequest,
        excluded: frozenset[str] = frozenset(),
        least_context: int = 0,
        preferred_context: int = 0,
        forced_ids: ForcedIds | None = None,
    ) -> Booking:
        """The worker for a request, never one named in `excluded`; enter the booking at once.

        `least_context`: tokens that a worker's context must have room for, as far as is known;
        `preferred_context`: those it has room for if any worker does.
        Raises ModelNotFound, or NoWorker when none is ready or all are excluded.
        """
        candidates = self._candidates(request.model, excluded)
        if forced_ids is not None:
            candidates = _forcing(candidates, request.model, forced_ids)
        if self._table.is_unequal(request.model):
            tokens = max(request.least_tokens, preferred_context)
            candidates = _fitting(candidates, request, least_context, tokens)
        policy = self._textless if request.path in TEXTLESS else self._policy
        return Booking(policy.choose(request, candidates), request.choices)

    def _candidates(self, model: str, excluded: frozenset[str]) -> list[Worker]:
        workers = self._table.trusted(model)
        if excluded:
            workers = [w for w in workers if w.row.name not in excluded]
            if not workers:  # a suspect that has not failed this very request is better than none
                ready = self._table.ready(model)
                workers = [w for w in ready if w.row.name not in excluded]
        if workers:
            return workers
        if not self._table.models() or self._table.has_offered(model):
            raise NoWorker(
                f"No worker of model '{model}' can take a request now. Try again in a moment.",
                headers=RETRY_AFTER,
            )
        raise ModelNotFound(
            f"The model '{model}' does not exist. Available: {', '.join(self._table.models())}.",
            param="model",
        )


def _forcing(workers: list[Worker], model: str, forced_ids: ForcedIds) -> list[Worker]:
    """The workers that take forced ids. Raises NoWorker if there are none and one is required."""
    forcing = [w for w in workers if w.extension is not None and w.extension.forced_ids]
    if not forcing and forced_ids is ForcedIds.REQUIRED:
        raise NoWorker(f"No worker of model '{model}' can replay this answer.", headers=RETRY_AFTER)
    return forcing or workers


def _fitting(
    workers: list[Worker], request: ApiRequest, least_context: int, tokens: int
) -> list[Worker]:
    """The workers that can take a request, as far as is known without a tokenizer.

    A text's tokens are not counted here: where it does not fit, the engine says so, and the request
    is given to a worker with a larger context. Workers with room for `tokens` are taken if there
    are any. Raises NoWorker if `least_context` is beyond all.
    """
    model = request.model
    if least_context:
        workers = [w for w in workers if (w.context_of(model) or math.inf) >= least_context]
        if not workers:
            raise NoWorker(
                f"No worker of model '{model}' with room for this request is free. Try again in a"
                " moment.",
                headers=RETRY_AFTER,
            )
    fitting = [
        worker
        for worker in workers
        if (worker.context_of(model) or math.inf) >= tokens
        and (request.chat or not (worker.extension and worker.extension.chat_only))
    ]
    return fitting or workers
