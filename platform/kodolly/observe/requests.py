"""What one API process measures of requests to models.

A `Measurement` goes with each request and takes down times and counts. When the request ends it is added to
the counts of its model. Nothing here is called for each token.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from kodolly.errors import ApiError
from kodolly.observe.families import Family
from kodolly.observe.histogram import TOKEN_SECONDS, Histogram

OK, CANCELLED, CLIENT_STALLED, BROKEN = "ok", "cancelled", "client_stalled", "broken"
INTERNAL_ERROR = "internal_error"
OUTCOME_OF_STATUS = {
    401: "unauthorized",
    403: "unauthorized",
    429: "overloaded",
    500: INTERNAL_ERROR,
    502: "engine_failed",
    503: "no_worker",
}
NO_MODEL, OTHER_MODELS = "none", "other"
MAX_MODELS = 256  # with counts of their own; the requests of further ones are counted together


class Measurement:
    """One request: when it began, and what has happened to it. Times by `time.perf_counter`, in seconds.

    `tokens_in`, `tokens_out`: None while unknown. Use it by `with` for as long as the request runs.
    """

    # What is not so is set on the object: most requests differ in little.
    first: float | None = None
    queue_wait: float | None = None
    entered = False
    model: str | None = None
    worker: str | None = None
    outcome: str | None = None
    retries = resumes = replays = 0
    tokens_in: int | None = None
    tokens_out: int | None = None

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def by(self, metrics: RequestMetrics) -> Self:
        """For `with`: the request has come to the models; at its end it is added to `metrics`."""
        self._metrics = metrics
        self.entered = True
        return self

    def admitted(self) -> None:
        """The request has its place, after whatever wait."""
        self.queue_wait = time.perf_counter() - self.start

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.outcome is None:
            self.outcome = OK if error is None else outcome_of(error)
        self._metrics.add(self)


def outcome_of(error: BaseException) -> str:
    """One of a fixed list of words."""
    if isinstance(error, ApiError):
        return OUTCOME_OF_STATUS.get(error.status, "bad_request")
    if isinstance(error, asyncio.CancelledError):
        return CANCELLED
    return CLIENT_STALLED if type(error).__name__ == "ClientStalled" else INTERNAL_ERROR


class _ModelCounts:
    """The counts of one model."""

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.first_token, self.duration, self.queue_wait = Histogram(), Histogram(), Histogram()
        self.inter_token = Histogram(TOKEN_SECONDS)
        self.tokens_in = self.tokens_out = self.retries = self.resumes = self.replays = 0


class RequestMetrics:
    """The counts of one API process."""

    def __init__(self) -> None:
        self._models: dict[str, _ModelCounts] = {}
        self._refusals: dict[type[ApiError], int] = {}

    def add(self, done: Measurement) -> None:
        """Counts a request that has ended."""
        now = time.perf_counter()
        model, outcome = done.model or NO_MODEL, done.outcome or OK
        counts = self._models.get(model) or self._new(model)
        counts.outcomes[outcome] = counts.outcomes.get(outcome, 0) + 1
        counts.duration.observe(now - done.start)
        if done.queue_wait is not None:
            counts.queue_wait.observe(done.queue_wait)
        if done.tokens_in is not None:
            counts.tokens_in += done.tokens_in
        tokens = done.tokens_out
        if tokens is not None:
            counts.tokens_out += tokens
        if done.first is not None:
            counts.first_token.observe(done.first - done.start)
            if tokens is not None and tokens > 1:
                counts.inter_token.observe((now - done.first) / (tokens - 1))
        if done.retries:
            counts.retries += done.retries
            counts.resumes += done.resumes
            counts.replays += done.replays

    def refuse(self, error: ApiError) -> None:
        """Counts a request that got an error instead of an answer."""
        kind = type(error)
        self._refusals[kind] = self._refusals.get(kind, 0) + 1

    def _new(self, model: str) -> _ModelCounts:
        if len(self._models) >= MAX_MODELS:
            model = OTHER_MODELS
        return self._models.setdefault(model, _ModelCounts())

    def families(self) -> list[Family]:
        """All counts as they are now."""
        models = self._models.items()
        requests = Family(
            "kodolly_requests_total", "counter", "Requests to models that have ended, by outcome."
        )
        for model, counts in models:
            for outcome, number in counts.outcomes.items():
                requests.set(number, model=model, outcome=outcome)
        refused = Family(
            "kodolly_requests_refused_total", "counter", "Requests answered with an error, by kind."
        )
        for kind, number in self._refusals.items():
            refused.set(number, reason=_snake(kind.__name__))
        tokens = Family(
            "kodolly_tokens_total", "counter", "Tokens of prompts (in) and of answers (out)."
        )
        for model, counts in models:
            tokens.set(counts.tokens_in, model=model, direction="in")
            tokens.set(counts.tokens_out, model=model, direction="out")
        return [
            requests,
            refused,
            tokens,
            *(self._histogram(*each) for each in HISTOGRAMS),
            *(self._counter(*each) for each in COUNTERS),
        ]

    def _histogram(self, name: str, what: str, of: Callable[[_ModelCounts], Histogram]) -> Family:
        family = Family(name, "histogram", what)
        for model, counts in self._models.items():
            of(counts).fill(family, model=model)
        return family

    def _counter(self, name: str, what: str, of: Callable[[_ModelCounts], int]) -> Family:
        family = Family(name, "counter", what)
        for model, counts in self._models.items():
            family.set(of(counts), model=model)
        return family


HISTOGRAMS: tuple[tuple[str, str, Callable[[_ModelCounts], Histogram]], ...] = (
    (
        "kodolly_time_to_first_token_seconds",
        "From a request's head to the first event of its streamed answer.",
        lambda counts: counts.first_token,
    ),
    (
        "kodolly_inter_token_seconds",
        "Mean time between two tokens of a streamed answer, one observation a stream.",
        lambda counts: counts.inter_token,
    ),
    (
        "kodolly_request_duration_seconds",
        "From a request's head to the end of its answer.",
        lambda counts: counts.duration,
    ),
    (
        "kodolly_queue_wait_seconds",
        "From a request's head until it may run.",
        lambda counts: counts.queue_wait,
    ),
)
COUNTERS: tuple[tuple[str, str, Callable[[_ModelCounts], int]], ...] = (
    (
        "kodolly_retries_total",
        "Attempts that a worker failed, after which another was tried.",
        lambda counts: counts.retries,
    ),
    (
        "kodolly_resumes_total",
        "Answers that another worker continued from their tokens.",
        lambda counts: counts.resumes,
    ),
    (
        "kodolly_replays_total",
        "Answers that another worker made again up to where they were.",
        lambda counts: counts.replays,
    ),
)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
