"""A response's events for one client, wherever it is made: here, elsewhere, or already finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kodolly.api.client_output import ClientOutput
from kodolly.api.responses.events import LAST_EVENT, EventMachine, encode, replay
from kodolly.api.responses.result import with_result
from kodolly.api.responses.stored.reader import Moved, Reader
from kodolly.api.responses.stored.run import Run
from kodolly.api.sse import PING

if TYPE_CHECKING:
    from kodolly.store.store import Store

Json = dict[str, Any]


async def follow_run(run: Run, reader: Reader, store: Store, output: ClientOutput) -> None:
    """Waits until the reader of a run has everything, or the rest comes from the store.

    Raises ApiError where the run has failed before its first event, ClientStalled.
    """
    try:
        await reader.wait()
        await _close(output)
    except Moved:
        await follow_store(run.prepared.base, store, output, run.last_sequence_number)
    finally:
        run.detach(reader)


async def follow_store(base: Json, store: Store, output: ClientOutput, after: int) -> None:
    """Writes the events after number `after` that the store has, and those that come, to the end.

    What is stored already comes in as few events as can be. Raises StoreUnavailable, ClientStalled.
    """
    machine = EventMachine(base)
    events = [each for each in machine.begin() if each["sequence_number"] > after]
    async for batch in store.follower.follow(base["id"]):
        events += replay(machine, (delta for _, delta in batch), after)
        if machine.status == "in_progress" and events:
            await output.write(encode(events))
            events = []
        # What the last delta makes is kept until the response itself is finished in the store.
    if machine.status == "in_progress" and (end := await _end_of(base, store, machine)):
        events.append(end)
    if events:
        await output.write(encode(events))
    await _close(output)


async def _close(output: ClientOutput) -> None:
    """Ends a stream, also one that had no event after the number that was asked for."""
    if not output.has_started:
        await output.write(PING)
    await output.close()


async def _end_of(base: Json, store: Store, machine: EventMachine) -> Json | None:
    """The last event of a response that ended without a last delta; None: it was deleted."""
    record = await store.responses.get(base["id"], None)
    if record is None or record.result is None:
        return None
    response = with_result(machine.response(), record.status, record.result)
    number = machine.sequence_number
    return {"type": LAST_EVENT[record.status], "sequence_number": number, "response": response}
