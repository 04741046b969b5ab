"""What the controller tells Prometheus: its metrics, and where its workers are to be scraped."""

from __future__ import annotations

from collections import Counter
from typing import Any
from urllib.parse import urlsplit

from kodolly.controller.feed import Feed
from kodolly.controller.registry import Registry
from kodolly.observe.families import Family
from kodolly.observe.observer import ENGINE_METRICS, METRICS
from kodolly.observe.process import process_families
from kodolly.protocol.wire import WorkerRow, WorkerState


def controller_families(registry: Registry, feed: Feed) -> list[Family]:
    """Everything but the counts of HTTP requests."""
    workers = Family("kodolly_workers", "gauge", "Workers in the table, by model and state.")
    queue = Family(
        "kodolly_worker_queue_length", "gauge", "Requests at a worker by its last heartbeat."
    )
    silence = Family(
        "kodolly_worker_heartbeat_age_seconds", "gauge", "Since a worker's last heartbeat."
    )
    rows = registry.silences()
    counts = Counter((model, row.state) for row, _ in rows for model in row.model_names)
    for model in {model for model, _ in counts}:
        for state in WorkerState:
            workers.set(counts[model, state], model=model, state=state.value)
    for row, seconds in rows:
        queue.set(row.queue_length, worker=row.name)
        silence.set(round(seconds, 3), worker=row.name)
    numbers: tuple[tuple[Any, ...], ...] = (
        ("kodolly_controller_workers", "gauge", "Rows of the table.", len(rows)),
        ("kodolly_controller_table_version", "counter", "Changes of the table.", registry.version),
        ("kodolly_controller_followers", "gauge", "Open watch streams.", feed.followers),
        ("kodolly_heartbeats_total", "counter", "Heartbeats that were taken.", registry.heartbeats),
        (
            "kodolly_registrations_total",
            "counter",
            "Registrations that were taken.",
            registry.registrations,
        ),
    )
    plain = [Family(name, kind, text).set(value) for name, kind, text, value in numbers]
    return [workers, queue, silence, *plain, *process_families()]


def targets(rows: list[WorkerRow], *, engines: bool) -> list[dict[str, Any]]:
    """What Prometheus' http_sd expects: each worker of KoDolly's with its labels, or its engine.

    An engine is scraped through its worker, which has the engine's key.
    """
    result = []
    for row in rows:
        if row.kodolly is None:  # a FastChat worker has no metrics
            continue
        url = urlsplit(row.name)
        labels = {
            "__scheme__": url.scheme,
            "__metrics_path__": ENGINE_METRICS if engines else METRICS,
            "worker": row.name,
            "model": row.model_names[0] if row.model_names else "",
            "engine": row.kodolly.engine or "other",
        }
        result.append({"targets": [url.netloc], "labels": labels})
    return result
