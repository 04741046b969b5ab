"""Finds out that a stock FastChat worker is dead before its heartbeats are missed.

Such a worker beats every 45 seconds and is lost after 90 without a beat. But when its port refuses
connections, it can answer nobody. One that is only slow, or hangs, is left to its heartbeats: a
FastChat worker that is busy may not answer for minutes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from kodolly.controller.registry import Registry
from kodolly.protocol.wire import WorkerState, WorkerStatus

log = logging.getLogger(__name__)

PROBE_INTERVAL = 2.0
CONNECT = 1.5

AskStatus = Callable[[str], Awaitable[WorkerStatus | None]]


class Prober:
    """Loses stock workers whose port is closed; takes them back when they answer again."""

    def __init__(self, registry: Registry, ask_status: AskStatus) -> None:
        """`ask_status` brings a worker's own status, or None if it does not answer."""
        self._registry = registry
        self._ask_status = ask_status
        self._refused: set[str] = set()

    async def run(self) -> None:
        """Probes for ever, all workers at once."""
        while True:
            await asyncio.sleep(PROBE_INTERVAL)
            await self.round()

    async def round(self) -> None:
        """One look at every stock worker."""
        stock = {row.name: row.state for row in self._registry.rows() if row.kodolly is None}
        self._refused &= set(stock)
        looks = [self._look(name, state) for name, state in stock.items()]
        await asyncio.gather(*looks)

    async def _look(self, name: str, state: WorkerState) -> None:
        if state is WorkerState.READY:
            self._refused.discard(name)
            if await refuses(name):
                log.warning("%s refuses connections", name)
                self._refused.add(name)
                self._registry.lose(name)
        elif (
            name in self._refused
            and state is WorkerState.LOST
            and not await refuses(name)
            and (status := await self._ask_status(name)) is not None
        ):
            self._registry.refresh(name, status)


async def refuses(url: str) -> bool:
    """Whether nobody listens at a base URL; no answer, or no such host, is no proof of that."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(CONNECT):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    writer.close()
    return False
