"""Follows the controllers' watch streams, so that the API has the table without asking for it.

Every controller's stream is kept open all the time: what the next one says is known when the first
falls silent. The table is that of one controller; if none answers, the last one stays in force.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import aiohttp
from pydantic import ValidationError

from kodolly.api.routing.table import WorkerTable
from kodolly.http.log_safe import describe_error
from kodolly.protocol.wire import Snapshot

log = logging.getLogger(__name__)

RECONNECT = 0.5
# A controller sends at least a keep-alive every half second.
SILENCE = 1.75
CONNECT = 1.5
MAX_LINE = 16 * 2**20
# A controller that comes back has an empty table, which the workers fill with their next beats.
STEADY = 5.0
LOOK = 1.0


class Feed:
    """One controller's watch stream: its newest table, and since when it has been there."""

    def __init__(
        self,
        controller: str,
        headers: dict[str, str],
        session: aiohttp.ClientSession,
        news: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`news` is called after every change."""
        self.url = controller.rstrip("/") + "/watch"
        self.newest = b""
        self.since: float | None = None
        self._headers = headers
        self._session = session
        self._news = news
        self._clock = clock

    async def run(self) -> None:
        """Follows the stream for ever, connecting again whenever it breaks."""
        complained = ""
        while True:
            try:
                await self._follow()
                complaint = "the watch stream ended"
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                complaint = describe_error(error)
            if self.is_steady():
                complained = ""
            self.since = None
            self._news()
            if complaint != complained:  # once a cause, not twice a second
                log.warning("controller %s: %s", self.url, complaint)
                complained = complaint
            await asyncio.sleep(RECONNECT)

    def is_steady(self) -> bool:
        """Whether it has been there for a while."""
        return self.since is not None and self._clock() - self.since >= STEADY

    async def _follow(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)
        async with self._session.get(
            self.url, headers=self._headers, timeout=timeout, read_bufsize=MAX_LINE
        ) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if not line.strip():
                    continue
                self.newest = line
                if self.since is None:
                    self.since = self._clock()
                self._news()


class Follower:
    """Keeps a table up to date from the best controller that answers, for as long as it runs."""

    def __init__(
        self,
        table: WorkerTable,
        controllers: str | Sequence[str],
        token: str | None,
        session: aiohttp.ClientSession,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`controllers`: URLs, the primary's first; a text has commas between them."""
        urls = controllers.split(",") if isinstance(controllers, str) else controllers
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._table = table
        self._feeds = [
            Feed(url.strip(), headers, session, self._update, clock) for url in urls if url.strip()
        ]
        self._chosen: Feed | None = None
        self._applied: tuple[Feed, bytes] | None = None

    async def run(self) -> None:
        """Follows all controllers for ever, and takes over the table of the best one."""
        async with asyncio.TaskGroup() as tasks:
            for feed in self._feeds:
                tasks.create_task(feed.run())
            while True:  # a better one becomes steady without any news
                await asyncio.sleep(LOOK)
                self._update()

    def _update(self) -> None:
        self._choose()
        self._apply()

    def _choose(self) -> None:
        """The first that answers; from a living one back to a better one once that is steady."""
        chosen = self._chosen
        alive = chosen is not None and chosen.since is not None
        for feed in self._feeds:
            if feed is chosen and alive:
                return
            if feed.is_steady() or (feed.since is not None and not alive):
                if chosen is not None and feed is not chosen:
                    log.warning("the table is taken from controller %s now", feed.url)
                self._chosen = feed
                return

    def _apply(self) -> None:
        feed = self._chosen
        if feed is None or feed.since is None or self._applied == (feed, feed.newest):
            return
        self._applied = (feed, feed.newest)
        try:
            snapshot = Snapshot.model_validate_json(feed.newest)
        except ValidationError as error:
            log.error("controller %s sent no table: %s", feed.url, describe_error(error))
            return
        self._table.apply(snapshot)
