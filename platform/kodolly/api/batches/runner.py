"""Runs this process's batches beside live traffic, at the lowest class, and yields to it.

A request's answer is committed as its line of the output before it counts as done. So when this process
dies, another one sends again only what has no line yet, and no line is there twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from kodolly.api.admission.admission import Admission
from kodolly.api.batches.lines import BadInput, Check, read_lines
from kodolly.api.routing.table import WorkerTable
from kodolly.errors import ApiError
from kodolly.store.batches import BatchLine, BatchRecord
from kodolly.store.patience import until_reachable
from kodolly.store.store import Store

log = logging.getLogger(__name__)

WORKER_SHARE = 4  # requests of a worker, live ones included, up to which a batch may add its own
LOOK = 0.25  # seconds between two looks whether there is room
STATE_LOOK = 1.0  # seconds between two looks whether the batch was cancelled
RETRY_PAUSES = (1.0, 2.0, 5.0, 10.0)  # seconds
TEMPORARY = (429, 502, 503)  # statuses after which a request is sent again
EXPIRED = {"code": "batch_expired", "message": "The batch's completion window is over."}


@dataclass(frozen=True)
class Target:
    """An endpoint that batches may name."""

    check: Check
    answer: Callable[
        [dict[str, Any], str, str], Awaitable[dict[str, Any]]
    ]  # body, owner, request id


class BatchRunner:
    """The batches of one API process."""

    def __init__(
        self,
        store: Store,
        targets: Mapping[str, Target],
        admission: Admission,
        table: WorkerTable,
        max_line: int,
    ) -> None:
        """`targets`: by path. `max_line`: bytes."""
        self.store = store
        self.targets = targets
        self._admission = admission
        self._table = table
        self._max_line = max_line
        self._running: Counter[str] = Counter()  # requests under way, by model
        self._tasks: set[asyncio.Task[None]] = set()
        self._newest: dict[str, asyncio.Task[None]] = {}  # by batch
        store.leases.on_batch_takeover = self.start

    async def aclose(self) -> None:
        """Stop; other processes go on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, batch_ids: Sequence[str]) -> None:
        """Run batches that are this process's, each once it has left what it still does of it.

        A process that was stopped for too long may claim a batch again that it has just lost.
        """
        for batch_id in batch_ids:
            task = asyncio.create_task(self._run(batch_id, self._newest.get(batch_id)))
            self._newest[batch_id] = task
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, batch_id: str, earlier: asyncio.Task[None] | None) -> None:
        if earlier is not None:
            await asyncio.wait([earlier])
        try:
            record = await until_reachable(lambda: self.store.batches.get(batch_id, None))
            if record is None or record.run_by is None:
                return
            if record.status == "validating" and not await self._validate(record):
                return
            status = await _Batch(self, record).run()
            if status is not None:
                await until_reachable(lambda: self.store.batches.finish(batch_id, status))
        except Exception:
            log.exception("batch %s failed by our own fault", batch_id)
            error = {"code": "server_error", "line": None, "message": "Internal error."}
            await until_reachable(lambda: self.store.batches.fail(batch_id, [error]))
        finally:
            if self._newest.get(batch_id) is asyncio.current_task():
                del self._newest[batch_id]

    async def _validate(self, record: BatchRecord) -> bool:
        target = self.targets[record.endpoint]
        try:
            parts = self.store.files.parts(record.input_file_id)
            lines = await read_lines(parts, record.endpoint, target.check, self._max_line)
        except BadInput as error:
            errors = error.errors
            await until_reachable(lambda: self.store.batches.fail(record.id, errors))
            return False
        return await until_reachable(lambda: self.store.batches.begin(record.id, lines))

    def model_of(self, line: BatchLine) -> str:
        """The model that a request is for, also where it names an alias."""
        name = str(line.body.get("model"))
        preset = self._table.preset(name)
        return name if preset is None else preset.model

    def has_room(self, model: str) -> bool:
        """Whether a batch's request may go to the model now: live ones do not wait, and leave room.

        Half of the places stay free, so that a live request finds one when it comes.
        What other API processes have sent counts as of the workers' last heartbeats.
        """
        own = self._running[model]
        ready = self._table.ready(model)
        if not ready:  # it waits at the door, or gets the error that says why
            return own < WORKER_SHARE
        if self._admission.waiting(model):
            return False
        live = max(0, self._admission.running(model) - own)
        foreign = sum(worker.foreign for worker in ready)
        share = min(WORKER_SHARE * len(ready), max(1, self._admission.capacity(model) // 2))
        return own + live + foreign < share

    async def answer(self, record: BatchRecord, line: BatchLine) -> tuple[int, str, Any]:
        """Send one request until it has an answer that will not change: status, request id, body."""
        model = self.model_of(line)
        attempt = 0
        while True:
            request_id = f"{record.id}-{line.line}"
            self._running[model] += 1
            try:
                answer = self.targets[record.endpoint].answer
                return 200, request_id, await answer(line.body, record.owner, request_id)
            except ApiError as error:
                if error.status not in TEMPORARY:
                    return error.status, request_id, error.envelope()
            except Exception:
                log.exception("%s: a batch's request failed by our own fault", request_id)
                return 500, request_id, ApiError("Internal error.").envelope()
            finally:
                self._running[model] -= 1
            await asyncio.sleep(RETRY_PAUSES[min(attempt, len(RETRY_PAUSES) - 1)])
            attempt += 1


class _Batch:
    """One batch that is in progress."""

    def __init__(self, runner: BatchRunner, record: BatchRecord) -> None:
        self._runner = runner
        self._record = record
        self._batches = runner.store.batches
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_lost = False
        self._next_look = 0.0
        self._last_line = 0  # that was started

    async def run(self) -> str | None:
        """Answer what has no line yet: the batch's last status; None if another process has it now."""
        try:
            async with asyncio.timeout(max(0.0, self._record.deadline - time.time())):
                is_cancelled = not await self._start_all()
                await self._settle()
        except TimeoutError:
            await self._cancel()
            await self._expire()
            return None if self._is_lost else "expired"
        except BaseException:
            await self._cancel()
            raise
        if self._is_lost:
            return None
        return "cancelled" if is_cancelled else "completed"

    async def _start_all(self) -> bool:
        """Start every open line, in order, as there is room. False: the batch was cancelled."""
        while True:
            lines = await until_reachable(self._more_lines)
            if not lines:
                return True
            for line in lines:
                while not self._runner.has_room(self._runner.model_of(line)):
                    if not await self._goes_on():
                        return False
                    await asyncio.sleep(LOOK)
                if not await self._goes_on():
                    return False
                task = asyncio.create_task(self._answer(line))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                await asyncio.sleep(0)  # it takes its place
            self._last_line = lines[-1].line

    async def _more_lines(self) -> list[BatchLine]:
        return await self._batches.open_lines(self._record.id, self._last_line)

    async def _goes_on(self) -> bool:
        """Whether the batch is neither cancelled nor lost, as of a moment ago."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + STATE_LOOK
            record = await until_reachable(lambda: self._batches.get(self._record.id, None))
            if record is None or record.run_by != self._runner.store.leases.process_id:
                self._is_lost = True
            elif record.cancel_requested:
                return False
        return not self._is_lost

    async def _answer(self, line: BatchLine) -> None:
        status, request_id, body = await self._runner.answer(self._record, line)
        response = {"status_code": status, "request_id": request_id, "body": body}
        await self._finish(line, response, None, is_error=status != 200)

    async def _finish(self, line: BatchLine, response: Any, error: Any, *, is_error: bool) -> None:
        text = orjson.dumps(
            {
                "id": f"batch_req_{uuid.uuid4().hex}",
                "custom_id": line.custom_id,
                "response": response,
                "error": error,
            }
        ).decode()
        if not await until_reachable(
            lambda: self._batches.finish_line(self._record.id, line.line, text, is_error=is_error)
        ):
            self._is_lost = True

    async def _settle(self) -> None:
        while self._tasks:
            await asyncio.gather(*self._tasks)

    async def _cancel(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _expire(self) -> None:
        while not self._is_lost:
            lines = await until_reachable(lambda: self._batches.open_lines(self._record.id, 0))
            if not lines:
                return
            for line in lines:
                await self._finish(line, None, EXPIRED, is_error=True)
