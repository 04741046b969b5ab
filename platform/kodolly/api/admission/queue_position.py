"""Events in a waiting client's own stream that say where it stands in the queue.

With `X-KoDolly-Queue: events` a stream starts at once, with events that have no choices:
`{"object": "kodolly.queue", "position": 3, "wait": 12.5, "choices": []}`, `wait` in seconds. A
refusal then comes as an error event, for the response has started.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kodolly.api.admission.admission import Ticket
from kodolly.api.client_output import Output
from kodolly.api.sse import event
from kodolly.http import server

INTERVAL = 1.0  # seconds between two events
# Most requests never wait: a wait shorter than this (s) gets no event.
FIRST_DELAY = 0.2


@asynccontextmanager
async def queue_events(ticket: Ticket, output: Output) -> AsyncIterator[None]:
    """Sends the ticket's place once a second for as long as the context lasts."""
    task = asyncio.create_task(_send_positions(ticket, output))
    try:
        yield
    finally:
        await server.cancel_and_wait(task)


async def _send_positions(ticket: Ticket, output: Output) -> None:
    await asyncio.sleep(FIRST_DELAY)
    while True:
        if ticket.position:
            place = {"position": ticket.position, "wait": round(ticket.wait, 1)}
            await output.write(event({"object": "kodolly.queue", **place, "choices": []}))
        await asyncio.sleep(INTERVAL)
