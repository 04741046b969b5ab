"""One attempt to finish, on another worker, what a lost worker left unfinished."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any

from kodolly.api.client_output import Output
from kodolly.api.engine_io.calls import EngineCalls
from kodolly.api.errors import WorkerFailed
from kodolly.api.request import ApiRequest
from kodolly.api.resume import events
from kodolly.api.resume.journal import Choice, Journal
from kodolly.api.routing.table import Worker
from kodolly.api.sse import LAST, event
from kodolly.errors import ApiError, NoWorker
from kodolly.http import server

Json = dict[str, Any]


class ResumeAttempt(ABC):
    """Finishes every answer of a stream on `worker`. What it sends is added to the journal."""

    def __init__(
        self,
        request: ApiRequest,
        worker: Worker,
        journal: Journal,
        engines: EngineCalls,
        output: Output,
        *,
        shows_ids: bool,
    ) -> None:
        """`shows_ids`: the client gets token ids."""
        self._request = request
        self._worker = worker
        self._journal = journal
        self._engines = engines
        self._output = output
        self._shows_ids = shows_ids

    @abstractmethod
    def check(self) -> None:
        """Raises WorkerFailed if this worker cannot do it."""

    @abstractmethod
    async def finish(self, choice: Choice) -> None:
        """Sends the rest of one answer. Raises WorkerFailed or ApiError."""

    def usage(self) -> Json:
        """The token counts of the whole answer."""
        return events.usage(self._request, self._journal)

    async def run(self) -> None:
        """Sends the rest of every answer, the usage if wanted, and the end.

        Raises WorkerFailed when this worker fails too, ApiError when no worker can go on.
        """
        self.check()
        await self._finish_all()
        if self._request.wants_usage and not self._journal.usage_sent:
            await self.send(events.usage_event(self._journal, self.usage()))
            self._journal.usage_sent = True
        await self._output.write(LAST)

    async def send(self, body: Json) -> None:
        """Sends one event."""
        await self._output.write(event(body))

    def new_id(self, choice: Choice) -> str:
        """An id for the engine, which remembers a request's id for a while after its end."""
        return f"{self._request.request_id}-{choice.index}-{len(choice.ids)}"

    async def _finish_all(self) -> None:
        # Not a TaskGroup: it cancels the task it fails in, which then cannot tell that from its
        # own client's leaving any more.
        tasks = [asyncio.create_task(self.finish(choice)) for choice in self._journal.unfinished]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            outcomes = [task.exception() for task in tasks if task.done()]
        finally:
            await server.cancel_and_wait(*tasks)
        if failures := [outcome for outcome in outcomes if outcome is not None]:
            raise _one_of(failures)


def _one_of(failures: list[BaseException]) -> BaseException:
    """The one failure that stands for what one engine did to several answers at once.

    A fault of our own code goes before all, then one that the request may have caused; an overloaded
    engine's refusal lets another worker try.
    """
    faults = [each for each in failures if not isinstance(each, WorkerFailed | ApiError)]
    crashes = [each for each in failures if isinstance(each, WorkerFailed) and each.engine_crashed]
    failure = (faults or crashes or failures)[0]
    if isinstance(failure, NoWorker):
        return WorkerFailed(failure.message, failure, did_work=False)
    return failure
