"""The metrics of a worker; those of its engine, which has a key of its own, are passed on."""

from __future__ import annotations

from starlette.responses import PlainTextResponse, Response

from kodolly.errors import EngineCallError
from kodolly.observe.families import CONTENT_TYPE, Family
from kodolly.observe.process import process_families
from kodolly.protocol.wire import WorkerState
from kodolly.worker.agent import Agent


def worker_families(agent: Agent) -> list[Family]:
    """Everything but the counts of HTTP requests."""
    state = Family("kodolly_worker_state", "gauge", "1 for the state that the worker is in.")
    for each in WorkerState:
        state.set(each is agent.state, state=each.value)
    load = Family(
        "kodolly_engine_load_seconds", "histogram", "From an engine's start to its first token."
    )
    agent.load_times.fill(load)
    sent, failed = agent.heartbeats
    beats = Family(
        "kodolly_heartbeats_sent_total", "counter", "Heartbeats to controllers, by result."
    )
    beats.set(sent, result="ok").set(failed, result="failed")
    queue = Family("kodolly_engine_requests", "gauge", "Requests that run or wait in the engine.")
    starts = Family(
        "kodolly_engine_starts_total", "counter", "Engines that this worker has started."
    )
    stalls = Family("kodolly_engine_stalls_total", "counter", "Times that the engine stood still.")
    return [
        state,
        load,
        beats,
        queue.set(agent.last_status().queue_length),
        starts.set(agent.engine_starts),
        stalls.set(agent.stalls),
        *process_families(),
    ]


async def engine_metrics(agent: Agent) -> Response:
    """What the engine itself tells; 502 where it does not."""
    try:
        text = await agent.engine.metrics_text()
    except EngineCallError as error:
        return PlainTextResponse(f"{error}\n", 502)
    return Response(text, media_type=CONTENT_TYPE)
