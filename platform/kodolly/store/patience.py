"""Work with the store that nobody waits for: it is tried until the store is there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kodolly.errors import StoreUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

PAUSES = (1.0, 2.0, 5.0, 10.0)  # seconds; the last one again and again


async def until_reachable(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, which is begun anew after each StoreUnavailable."""
    attempt = 0
    while True:
        try:
            return await work()
        except StoreUnavailable as error:
            log.warning("work waits for the store: %s", error)
            await asyncio.sleep(PAUSES[min(attempt, len(PAUSES) - 1)])
            attempt += 1
