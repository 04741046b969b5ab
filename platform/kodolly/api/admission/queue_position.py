"""A waiting client's place in the queue, told in its own stream to those who ask for it.

With `X-KoDolly-Queue: events` a stream begins at once, with events that have no choices:
`{"object": "kodolly.queue", "position": 3, "wait": 12.5, "choices": []}`, `wait` in seconds. A
refusal then comes as an error event, for the response has begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kodolly.api.admission.admission import Ticket
from kodolly.api.sse import Output, event
from kodolly.http import server

EVERY = 1.0
# Most calls never wait: nothing is told of a wait shorter than this.
AT_FIRST = 0.2


@asynccontextmanager
async def told_aloud(ticket: Ticket, output: Output) -> AsyncIterator[None]:
    """Tells the ticket's place for as long as the context lasts."""
    telling = asyncio.create_task(_tell(ticket, output))
    try:
        yield
    finally:
        await server.cancel_and_wait(telling)


async def _tell(ticket: Ticket, output: Output) -> None:
    await asyncio.sleep(AT_FIRST)
    while True:
        if ticket.position:
            told = {"position": ticket.position, "wait": round(ticket.wait, 1)}
            await output.write(event({"object": "kodolly.queue", **told, "choices": []}))
        await asyncio.sleep(EVERY)
