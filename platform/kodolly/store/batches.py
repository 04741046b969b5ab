"""Batches: one row each, and one for each of their requests until the batch is finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from kodolly.store.database import Database
from kodolly.store.files import FileRecord, Files
from kodolly.store.leases import Leases
from kodolly.store.records import is_id
from kodolly.store.tables import batch_lines, batches

LINES_AT_ONCE = 500


@dataclass
class BatchRecord:
    """A batch. Times: seconds since 1970."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    created_at: float
    deadline: float
    status: str = "validating"
    metadata: dict[str, Any] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # total, completed, failed
    errors: list[dict[str, Any]] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    expires_at: float = 0.0
    run_by: str | None = None
    cancel_requested: bool = False


@dataclass
class BatchLine:
    """One request of a batch."""

    line: int
    custom_id: str
    body: dict[str, Any]


class Batches:
    """The batches of all clients; each sees its own alone."""

    def __init__(self, database: Database, leases: Leases, files: Files, ttl: float) -> None:
        """`ttl`: seconds that a batch is kept after it was made."""
        self._database = database
        self._leases = leases
        self._files = files
        self._ttl = ttl

    async def create(self, record: BatchRecord) -> None:
        """Store a new batch that this process runs. Raises StoreUnavailable."""
        record.run_by = self._leases.process_id
        record.expires_at = max(record.created_at + self._ttl, record.deadline)
        async with self._database.write() as connection:
            await connection.execute(sa.insert(batches).values(**asdict(record)))

    async def get(self, batch_id: str, owner: str | None) -> BatchRecord | None:
        """A batch with its counts as they are now; None if its owner has none. `owner` None: any."""
        if not is_id(batch_id):
            return None
        where = [batches.c.id == batch_id]
        if owner is not None:
            where.append(batches.c.owner == owner)
        async with self._database.read() as connection:
            row = (await connection.execute(sa.select(batches).where(*where))).one_or_none()
            return None if row is None else await _with_counts(connection, row)

    async def list_batches(
        self, owner: str, *, after: str | None, limit: int
    ) -> tuple[list[BatchRecord], bool]:
        """The owner's batches, newest first, after the one with id `after`; whether there are more."""
        where = [batches.c.owner == owner]
        if after is not None:
            last = await self.get(after, owner)
            if last is None:
                return [], False
            key = sa.tuple_(batches.c.created_at, batches.c.id)
            where.append(key < sa.tuple_(last.created_at, last.id))
        async with self._database.read() as connection:
            rows = await connection.execute(
                sa.select(batches)
                .where(*where)
                .order_by(batches.c.created_at.desc(), batches.c.id.desc())
                .limit(limit + 1)
            )
            page = [await _with_counts(connection, row) for row in rows.all()]
        return page[:limit], len(page) > limit

    async def request_cancel(self, batch_id: str, owner: str) -> None:
        """Ask whoever runs a batch to cancel it."""
        async with self._database.write() as connection:
            await connection.execute(
                sa.update(batches)
                .where(
                    batches.c.id == batch_id,
                    batches.c.owner == owner,
                    batches.c.status.in_(("validating", "in_progress")),
                )
                .values(cancel_requested=True, status="cancelling")
            )

    async def begin(self, batch_id: str, lines: Sequence[BatchLine]) -> bool:
        """Store a batch's requests, then that it is in progress. False: it is not this process's.

        In several transactions, like `finish`: running answers are committed in between.
        """
        async with self._database.write() as connection:
            if not await self._is_own(connection, batch_id):
                return False
            await connection.execute(sa.delete(batch_lines).where(_of(batch_id)))
        for start in range(0, len(lines), LINES_AT_ONCE):
            rows = [
                asdict(line) | {"batch_id": batch_id, "is_error": False}
                for line in lines[start : start + LINES_AT_ONCE]
            ]
            async with self._database.write() as connection:
                if not await self._is_own(connection, batch_id):
                    return False
                await connection.execute(sa.insert(batch_lines), rows)
        async with self._database.write() as connection:
            where = batches.c.status == "validating"
            await self._update(connection, batch_id, {"status": "in_progress"}, where)
            return await self._set_time(connection, batch_id, "in_progress_at")

    async def open_lines(self, batch_id: str, after: int) -> list[BatchLine]:
        """Some of the requests after line `after` that have no result, in order."""
        async with self._database.read() as connection:
            rows = await connection.execute(
                sa.select(batch_lines.c.line, batch_lines.c.custom_id, batch_lines.c.body)
                .where(_of(batch_id), batch_lines.c.line > after, batch_lines.c.result.is_(None))
                .order_by(batch_lines.c.line)
                .limit(LINES_AT_ONCE)
            )
            return [BatchLine(**row._mapping) for row in rows]

    async def finish_line(self, batch_id: str, line: int, result: str, *, is_error: bool) -> bool:
        """Store a request's line of the output. False: the batch is not this process's any more."""
        async with self._database.write() as connection:
            if not await self._is_own(connection, batch_id):
                return False
            await connection.execute(
                sa.update(batch_lines)
                .where(_of(batch_id), batch_lines.c.line == line, batch_lines.c.result.is_(None))
                .values(result=result, is_error=is_error)
            )
            return True

    async def fail(self, batch_id: str, errors: list[dict[str, Any]]) -> None:
        """The input cannot be used."""
        async with self._database.write() as connection:
            await self._set_time(connection, batch_id, "failed_at")
            values = {"status": "failed", "errors": errors, "run_by": None}
            await self._update(connection, batch_id, values)

    async def finish(self, batch_id: str, status: str) -> bool:
        """Make the output and error files, then set the batch's last status. False: not ours.

        A process that takes it over makes the files again, under the same ids.
        """
        record = await self.get(batch_id, None)
        if record is None:
            return False
        values: dict[str, Any] = {"status": status, "run_by": None, "counts": record.counts}
        for name, kind in (("output_file_id", "output"), ("error_file_id", "error")):
            if record.counts["failed" if kind == "error" else "completed"]:
                values[name] = f"file-{batch_id.removeprefix('batch_')}-{kind}"
                if not await self._make_file(record, values[name], kind):
                    return False
        async with self._database.write() as connection:
            if not await self._set_time(connection, batch_id, f"{status}_at"):
                return False
            await self._update(connection, batch_id, values)
            await connection.execute(sa.delete(batch_lines).where(_of(batch_id)))
            return True

    async def _make_file(self, record: BatchRecord, file_id: str, kind: str) -> bool:
        """One of the two files, some hundred lines in a transaction."""
        name = f"{record.id}_{kind}.jsonl"
        file = FileRecord(file_id, record.owner, name, "batch_output", time.time())
        async with self._database.write() as connection:
            if not await self._is_own(connection, record.id):
                return False
            await self._files.begin(connection, file)
        part = after = 0
        while True:
            async with self._database.write() as connection:
                rows = await connection.execute(
                    sa.select(batch_lines.c.line, batch_lines.c.result)
                    .where(
                        *(_of(record.id), batch_lines.c.line > after),
                        batch_lines.c.result.is_not(None),
                        batch_lines.c.is_error == (kind == "error"),
                    )
                    .order_by(batch_lines.c.line)
                    .limit(LINES_AT_ONCE)
                )
                some = rows.all()
                if not some:
                    return True
                if not await self._is_own(connection, record.id):
                    return False
                data = "".join(f"{row.result}\n" for row in some).encode()
                part = await self._files.extend(connection, file_id, part, data)
                after = some[-1].line

    async def _is_own(self, connection: AsyncConnection, batch_id: str) -> bool:
        """Whether this process runs a batch; it stays so until the transaction is over."""
        return await self._update(connection, batch_id, {"run_by": self._leases.process_id})

    async def _update(
        self,
        connection: AsyncConnection,
        batch_id: str,
        values: dict[str, Any],
        *where: sa.ColumnElement[bool],
    ) -> bool:
        """Change a batch that this process runs. False if it does not."""
        result = await connection.execute(
            sa.update(batches)
            .where(batches.c.id == batch_id, batches.c.run_by == self._leases.process_id, *where)
            .values(values)
        )
        return bool(result.rowcount)

    async def _set_time(self, connection: AsyncConnection, batch_id: str, name: str) -> bool:
        times = await connection.scalar(sa.select(batches.c.times).where(batches.c.id == batch_id))
        return await self._update(
            connection, batch_id, {"times": {**(times or {}), name: time.time()}}
        )


def _of(batch_id: str) -> sa.ColumnElement[bool]:
    return batch_lines.c.batch_id == batch_id


async def _with_counts(connection: AsyncConnection, row: sa.Row[Any]) -> BatchRecord:
    record = BatchRecord(**row._mapping)
    if not record.counts:
        total, done, failed = (
            await connection.execute(
                sa.select(
                    sa.func.count(),
                    sa.func.count(batch_lines.c.result),
                    sa.func.count(sa.case((batch_lines.c.is_error, 1))),
                ).where(_of(record.id))
            )
        ).one()
        record.counts = {"total": total, "completed": done - failed, "failed": failed}
    return record
