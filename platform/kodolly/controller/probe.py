"""Notices a dead FastChat worker earlier than its missing heartbeats would.

Such a worker sends a heartbeat every 45 seconds and is lost after 90 seconds without one. But when
its port refuses connections, it can answer no request. A worker that is only slow, or hangs, is
left to its heartbeats: a busy FastChat worker may not answer for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from kodolly.controller.registry import Registry
from kodolly.protocol.wire import WorkerState, WorkerStatus

log = logging.getLogger(__name__)

FetchStatus = Callable[[str], Awaitable[WorkerStatus | None]]


class Prober:
    """Marks FastChat workers whose port is closed as lost, and as ready once they answer again."""

    def __init__(
        self,
        registry: Registry,
        fetch_status: FetchStatus,
        *,
        interval: float,
        connect_timeout: float,
    ) -> None:
        """`fetch_status`: asks a worker for its status; None if it does not answer.

        `interval`: seconds between two rounds. `connect_timeout`: seconds to reach a worker.
        """
        self._registry = registry
        self._fetch_status = fetch_status
        self._interval = interval
        self._connect_timeout = connect_timeout
        self._closed: set[str] = set()  # workers that this prober marked as lost

    async def run(self) -> None:
        """Probes until cancelled, all workers at the same time."""
        while True:
            await asyncio.sleep(self._interval)
            await self.round()

    async def round(self) -> None:
        """Probes every FastChat worker once."""
        states = {row.name: row.state for row in self._registry.rows() if row.kodolly is None}
        self._closed &= set(states)
        await asyncio.gather(*(self._try_probe(name, state) for name, state in states.items()))

    async def _try_probe(self, name: str, state: WorkerState) -> None:
        """As `_probe`. Whatever is wrong with one row, the others are still probed."""
        try:
            await self._probe(name, state)
        except Exception:
            log.exception("%s cannot be probed", name)

    async def _probe(self, name: str, state: WorkerState) -> None:
        if state is WorkerState.READY:
            self._closed.discard(name)
            if await is_port_closed(name, self._connect_timeout):
                log.warning("%s refuses connections", name)
                self._closed.add(name)
                self._registry.mark_lost(name)
        elif (
            name in self._closed
            and state is WorkerState.LOST
            and not await is_port_closed(name, self._connect_timeout)
            and (status := await self._fetch_status(name)) is not None
        ):
            self._registry.refresh(name, status)


async def is_port_closed(url: str, timeout: float) -> bool:
    """Whether the host of a base URL refuses connections to its port.

    `timeout`: seconds to connect. A timeout or an unknown host is no proof: False.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError, ValueError):  # ValueError: a port or a name that cannot be
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return False
