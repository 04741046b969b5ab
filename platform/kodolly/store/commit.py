"""The transactions of a group commit.

Events alone are stored by one statement of the driver: it happens 12 times a second, and SQLAlchemy would take
several times the CPU. New responses and the ends of others come with them in a transaction of SQLAlchemy's.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from kodolly.errors import Fenced, KodollyError, ResponseDeleted, StoreUnavailable
from kodolly.store.notices import CHANNEL, CHUNK, notify, payloads
from kodolly.store.tables import items, pack_token_ids, processes, responses

OnCommit = Callable[[KodollyError | None, int], None]
Operation = Callable[[sa.Connection], Any]

COLUMNS = ("response_id", "seq", "n", "deltas", "token_ids")
# The values are in their stored form already: see rows_of. A commit whose acknowledgement was lost is tried
# again: its chunks are there already.
_CHUNKS = sa.table("chunks", *(sa.column(name) for name in COLUMNS))
_INSERT_CHUNKS = {
    "sqlite": sqlite.insert(_CHUNKS).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(_CHUNKS).on_conflict_do_nothing(),
}
_SQLITE_OWN = """
SELECT r.id FROM responses r JOIN processes p ON p.id = r.run_by
WHERE p.id = ? AND r.id IN (SELECT value FROM json_each(?))"""
_SQLITE_INSERT = """
INSERT OR IGNORE INTO chunks (response_id, seq, n, deltas, token_ids) VALUES (?, ?, ?, ?, ?)"""
# `own` locks this process's row: nobody declares it dead until the commit is over.
_POSTGRESQL = """
WITH own AS (
    SELECT r.id FROM responses r JOIN processes p ON p.id = r.run_by
    WHERE p.id = $1 AND r.id = ANY($2::text[]) FOR SHARE OF p
), stored AS (
    INSERT INTO chunks (response_id, seq, n, deltas, token_ids)
    SELECT c.* FROM unnest($2::text[], $3::int[], $4::int[], $5::text[], $6::bytea[])
        AS c(response_id, seq, n, deltas, token_ids) JOIN own ON own.id = c.response_id
    ON CONFLICT DO NOTHING
)
SELECT array(SELECT id FROM own), (SELECT count(pg_notify($7, line)) FROM unnest($8::text[]) AS line)"""


@dataclass
class Chunk:
    """Events seq, seq + 1, ... of one response that were not committed yet, of `appends` calls."""

    seq: int
    deltas: list[Any]
    token_ids: list[int]
    on_commit: OnCommit
    appends: int = 1


@dataclass
class QueuedOperation:
    """What is to be done in a transaction after the events of its response."""

    response_id: str
    run: Operation
    future: asyncio.Future[Any]
    error: KodollyError | None = None
    result: Any = None


@dataclass
class NewResponse:
    """A row of `responses` and those of its input items."""

    row: dict[str, Any]
    items: list[dict[str, Any]]
    future: asyncio.Future[None]


@dataclass
class Group:
    """What one transaction commits. `is_retry`: an attempt before may have been committed after all."""

    new: list[NewResponse] = field(default_factory=list)
    is_retry: bool = False
    chunks: dict[str, Chunk] = field(default_factory=dict)
    operations: list[QueuedOperation] = field(default_factory=list)
    errors: dict[str, KodollyError] = field(default_factory=dict)  # by response: not ours any more

    def response_ids(self) -> set[str]:
        """The responses that this process must run for this to be committed."""
        return {*self.chunks, *(operation.response_id for operation in self.operations)}

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self.new or self.chunks or self.operations)


class OperationFailed(Exception):
    """An operation of a group failed: the whole is tried again, each operation by itself."""


Row = tuple[str, int, int, str, bytes | None]


def rows_of(chunks: Mapping[str, Chunk]) -> tuple[list[Row], dict[str, KodollyError]]:
    """The rows of the table `chunks`, and the responses whose events cannot be written as JSON."""
    rows: list[Row] = []
    errors: dict[str, KodollyError] = {}
    for response_id, chunk in chunks.items():
        try:
            deltas = orjson.dumps(chunk.deltas).decode()
            token_ids = pack_token_ids(chunk.token_ids)
        except (TypeError, ValueError, struct.error) as error:
            errors[response_id] = StoreUnavailable(f"These events cannot be stored: {error}")
        else:
            rows.append((response_id, chunk.seq, len(chunk.deltas), deltas, token_ids))
    return rows, errors


def commit_to_sqlite(connection: sa.Connection, process_id: str, rows: list[Row]) -> set[str]:
    """In the caller's transaction: stores the rows of responses that the process runs; their ids."""
    driver: Any = connection.connection.driver_connection
    ids = orjson.dumps([row[0] for row in rows]).decode()
    own = {row[0] for row in driver.execute(_SQLITE_OWN, (process_id, ids))}
    driver.executemany(_SQLITE_INSERT, [row for row in rows if row[0] in own])
    return own


async def commit_to_postgresql(driver: Any, process_id: str, rows: list[Row]) -> set[str]:
    """One statement, committed by itself, on asyncpg's connection; the ids of what it has stored."""
    if not rows:
        return set()
    columns = [list(column) for column in zip(*rows, strict=True)]
    lines = payloads(CHUNK, [f"{row[0]} {row[1]}" for row in rows])
    record = await driver.fetchrow(_POSTGRESQL, process_id, *columns, CHANNEL, lines)
    return set(record[0])


def commit_group(
    connection: sa.Connection,
    group: Group,
    rows: list[Row],
    process_id: str,
    *,
    each_by_itself: bool,
) -> None:
    """In the caller's transaction: new responses, events, and what is to be done after them.

    `each_by_itself`: an operation that fails leaves the others as they are, at the cost of a savepoint each.
    Raises OperationFailed where one fails without that.
    """
    if group.new:
        _insert_new(connection, group)
    ids = group.response_ids()
    group.errors = _not_ours(connection, process_id, ids) if ids else {}
    own = [dict(zip(COLUMNS, row, strict=True)) for row in rows if row[0] not in group.errors]
    if own:
        connection.execute(_INSERT_CHUNKS[connection.dialect.name], own)
    for operation in group.operations:
        operation.error = group.errors.get(operation.response_id)
        if operation.error is None:
            _run(operation, connection, each_by_itself=each_by_itself)
    lines = [f"{row[0]} {row[1]}" for row in rows if row[0] not in group.errors]
    notify(connection, CHUNK, lines)


def reasons(connection: sa.Connection, ids: set[str]) -> dict[str, KodollyError]:
    """Why this process may not write these responses."""
    rows = connection.execute(sa.select(responses.c.id).where(responses.c.id.in_(ids)))
    others = set(rows.scalars())
    return {
        each: Fenced("another process has taken this response over")
        if each in others
        else ResponseDeleted("the response was deleted")
        for each in ids
    }


def _insert_new(connection: sa.Connection, group: Group) -> None:
    new = group.new
    if group.is_retry:
        ids = [each.row["id"] for each in new]
        present = connection.execute(sa.select(responses.c.id).where(responses.c.id.in_(ids)))
        there = set(present.scalars())
        new = [each for each in new if each.row["id"] not in there]
    if new:
        connection.execute(sa.insert(responses), [each.row for each in new])
    if rows := [row for each in new for row in each.items]:
        connection.execute(sa.insert(items), rows)


def _not_ours(connection: sa.Connection, process_id: str, ids: set[str]) -> dict[str, KodollyError]:
    """Which of the responses this process may not write, and why.

    The lock on its own row keeps others from declaring it dead until this transaction is over.
    """
    own = connection.execute(
        sa.select(responses.c.id)
        .join(processes, processes.c.id == responses.c.run_by)
        .where(processes.c.id == process_id, responses.c.id.in_(ids))
        .with_for_update(read=True, of=processes)
    )
    missing = ids - set(own.scalars())
    return reasons(connection, missing) if missing else {}


def _run(operation: QueuedOperation, connection: sa.Connection, *, each_by_itself: bool) -> None:
    """Run one operation so that its failure leaves the others as they are, or raise OperationFailed."""
    try:
        if each_by_itself:
            with connection.begin_nested():
                operation.result = operation.run(connection)
        else:
            operation.result = operation.run(connection)
    except StoreUnavailable:
        raise
    except (IntegrityError, KodollyError) as error:
        if not each_by_itself:
            raise OperationFailed from error
        operation.error = (
            error
            if isinstance(error, KodollyError)
            else ResponseDeleted(f"the response or its conversation is gone: {error.orig}")
        )
