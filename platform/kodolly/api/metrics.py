"""All metrics of one API process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kodolly.api.admission.admission import Admission
from kodolly.api.engine_io.stall_watch import StallWatch
from kodolly.api.routing.follower import Follower
from kodolly.api.routing.table import WorkerTable
from kodolly.observe.families import Family
from kodolly.observe.observer import HttpMetrics
from kodolly.observe.process import process_families
from kodolly.observe.requests import RequestMetrics

if TYPE_CHECKING:
    from kodolly.store.store import Store


class ApiMetrics:
    """Counts of requests, and the state of what they pass through."""

    def __init__(
        self,
        requests: RequestMetrics,
        http: HttpMetrics,
        admission: Admission,
        watch: StallWatch,
        follower: Follower,
        table: WorkerTable,
        store: Store | None,
    ) -> None:
        """`store`: None where nothing is stored."""
        self._requests, self._http = requests, http
        self._admission, self._watch = admission, watch
        self._follower, self._table = follower, table
        self._store = store

    def families(self) -> list[Family]:
        """This process's own, to be summed with those of its siblings."""
        processes = Family("kodolly_api_processes", "gauge", "API processes behind this port.")
        return [
            *self._requests.families(),
            *self._queues(),
            *self._workers(),
            *self._stored(),
            *self._http.families(),
            processes.set(1),
            *process_families(),
        ]

    def _queues(self) -> list[Family]:
        running = Family("kodolly_requests_in_flight", "gauge", "Requests to models that run now.")
        waiting = Family("kodolly_requests_queued", "gauge", "Requests that wait for their turn.")
        for model, runs, waits in self._admission.counts():
            running.set(runs, model=model)
            waiting.set(waits, model=model)
        return [running, waiting]

    def _workers(self) -> list[Family]:
        moved = Family(
            "kodolly_stalled_calls_total", "counter", "Calls taken off an engine that fell silent."
        )
        ready = Family(
            "kodolly_api_ready_workers", "gauge", "Ready workers that the API knows of.", "min"
        )
        controllers = Family(
            "kodolly_api_controllers", "gauge", "Controllers that the API hears.", "min"
        )
        for model in self._table.models():
            ready.set(len(self._table.ready(model)), model=model)
        controllers.set(self._follower.connected)
        return [moved.set(self._watch.calls_moved), ready, controllers]

    def _stored(self) -> list[Family]:
        if self._store is None:
            return []
        flusher = self._store.flusher
        up = Family("kodolly_store_up", "gauge", "1 while the store takes commits.", "min")
        commits = Family("kodolly_store_commits_total", "counter", "Transactions of answers.")
        lost = Family(
            "kodolly_store_lost_responses_total", "counter", "Answers that the store did not take."
        )
        return [up.set(not flusher.is_down), commits.set(flusher.commits), lost.set(flusher.lost)]
