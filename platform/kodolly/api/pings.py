"""Comments on streams that are silent: a proxy would take a connection without bytes for a dead one.

A stream is silent while its request waits for its turn, while an engine reads a long prompt, and
while another worker is sought. One task looks at all streams, so that a token costs nothing more.
"""

from __future__ import annotations

import asyncio
import logging

from kodolly.api.client_output import Output

log = logging.getLogger(__name__)

# Looks at all streams in one interval: a comment comes after 3/4 of it at the earliest.
TICKS = 4


class Pings:
    """The open streams of one API process. `interval`: seconds of silence at most; 0: never ends."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._outputs: set[Output] = set()

    def add(self, output: Output) -> None:
        """Begins to look after a stream."""
        self._outputs.add(output)

    def discard(self, output: Output) -> None:
        """The stream has ended."""
        self._outputs.discard(output)

    async def run(self) -> None:
        """Looks at all streams until cancelled."""
        while self._interval:
            await asyncio.sleep(self._interval / TICKS)
            self.look()

    def look(self) -> None:
        """Sends a comment on each stream that has been silent for TICKS looks."""
        for output in tuple(self._outputs):
            output.quiet_ticks += 1
            if output.quiet_ticks >= TICKS:
                try:
                    output.ping()
                except Exception:  # one stream's fault must not end the task that serves all
                    log.exception("%s: no comment can be sent", output.request_id)
                    self.discard(output)
