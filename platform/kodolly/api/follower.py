"""Follows a controller's watch stream, so that the API has the table without asking for it."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
from pydantic import ValidationError

from kodolly.api.table import WorkerTable
from kodolly.protocol.wire import Snapshot
from kodolly.reason import reason

log = logging.getLogger(__name__)

RECONNECT = 0.5
# The controller sends at least a keep-alive every two seconds.
SILENCE = 10.0
MAX_LINE = 16 * 2**20


class Follower:
    """Keeps a table up to date from one controller, for as long as it runs."""

    def __init__(
        self, table: WorkerTable, controller: str, token: str | None, session: aiohttp.ClientSession
    ) -> None:
        self._table = table
        self._url = controller.rstrip("/") + "/watch"
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session = session

    async def run(self) -> None:
        """Follows the watch stream for ever, connecting again whenever it breaks."""
        complained = ""
        while True:
            try:
                await self._follow()
                complaint = "the watch stream ended"
            except (aiohttp.ClientError, TimeoutError, ValidationError, ValueError) as error:
                complaint = reason(error)
            if complaint != complained:  # once a cause, not twice a second
                log.warning(
                    "controller %s: %s; the last table stays in force", self._url, complaint
                )
                complained = complaint
            await asyncio.sleep(RECONNECT)

    async def _follow(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=3, sock_read=SILENCE)
        async with self._session.get(
            self._url, headers=self._headers, timeout=timeout, read_bufsize=MAX_LINE
        ) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.strip():
                    self._table.apply(Snapshot.model_validate_json(line))
