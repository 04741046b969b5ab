"""Stored responses: one row each, their items, and the chunks of their events."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from kodolly.errors import BadRequest
from kodolly.store.conversations import item_rows, page_of_items
from kodolly.store.database import Database
from kodolly.store.flusher import Flusher
from kodolly.store.follower import Follower
from kodolly.store.leases import Leases
from kodolly.store.notices import CANCEL, END, notify
from kodolly.store.quota import ROW_BYTES, Quota, size_of, text_bytes
from kodolly.store.records import (
    TERMINAL,
    Item,
    ItemPage,
    ResponseRecord,
    StoredEvents,
    is_id,
)
from kodolly.store.tables import chunks, conversations, items, responses

MAX_TURNS = 1000  # of a chain of previous responses


class Responses:
    """The responses of all clients; each sees its own alone."""

    def __init__(
        self,
        database: Database,
        flusher: Flusher,
        follower: Follower,
        leases: Leases,
        quota: Quota,
        ttl: float,
    ) -> None:
        """`ttl`: seconds that a response is kept after it was made."""
        self._database = database
        self._flusher = flusher
        self._follower = follower
        self._leases = leases
        self._quota = quota
        self._ttl = ttl

    async def create(self, record: ResponseRecord, input_items: Sequence[Item]) -> None:
        """Store a new response that this process runs; committed when it returns.

        Raises StoreFull, StoreUnavailable.
        """
        record.bytes = size_of(record.request, *input_items)
        await self._quota.reserve(record.owner, record.bytes)
        record.expires_at = record.created_at + self._ttl
        record.run_by = None if record.status in TERMINAL else self._leases.process_id
        record.model = record.model.replace("\0", "")  # PostgreSQL takes none
        rows = item_rows(input_items, record.owner, role="input", response_id=record.id)
        await self._flusher.create(asdict(record), rows)

    async def get(self, response_id: str, owner: str | None) -> ResponseRecord | None:
        """A response; None if its owner has none of that id. `owner` None: any.

        While it runs, `last_seq` is the number of its newest committed event.
        """
        if not is_id(response_id):
            return None
        async with self._database.read() as connection:
            row = await self._row(connection, response_id, owner)
            if row is None:
                return None
            record = ResponseRecord(**row._mapping)
            if record.status not in TERMINAL:
                last = sa.func.max(chunks.c.seq + chunks.c.n)
                end = await connection.scalar(
                    sa.select(last).where(chunks.c.response_id == response_id)
                )
                record.last_seq = (end or 0) - 1
            return record

    async def events(self, response_id: str) -> StoredEvents:
        """All committed events of a response, from its first, and their token ids."""
        result = StoredEvents()
        async with self._database.read() as connection:
            rows = await connection.execute(
                sa.select(chunks.c.deltas, chunks.c.token_ids)
                .where(chunks.c.response_id == response_id)
                .order_by(chunks.c.seq)
            )
            for row in rows:
                result.deltas += row.deltas
                result.token_ids += row.token_ids or ()
        return result

    async def list_input_items(
        self,
        response_id: str,
        owner: str,
        *,
        after: str | None = None,
        limit: int = 20,
        order: str = "desc",
    ) -> ItemPage | None:
        """Some of a response's input items; None if its owner has no such response."""
        if not is_id(response_id):
            return None
        async with self._database.read() as connection:
            if await self._row(connection, response_id, owner) is None:
                return None
            where = (items.c.response_id == response_id, items.c.role == "input")
            return await page_of_items(connection, where, after=after, limit=limit, order=order)

    async def output_items(self, response_id: str) -> list[Item]:
        """A finished response's output items, in order."""
        async with self._database.read() as connection:
            rows = await connection.execute(
                sa.select(items.c.data)
                .where(items.c.response_id == response_id, items.c.role == "output")
                .order_by(items.c.row)
            )
            return list(rows.scalars())

    async def start(
        self, response_id: str, *, prompt_token_ids: Sequence[int] | None = None
    ) -> None:
        """A queued response is in progress. Raises Fenced, ResponseDeleted, StoreUnavailable."""
        values: dict[str, Any] = {"status": "in_progress"}
        if prompt_token_ids is not None:
            values["prompt_token_ids"] = list(prompt_token_ids)
        condition = (responses.c.id == response_id, responses.c.status.not_in(TERMINAL))

        def operation(connection: sa.Connection) -> None:
            connection.execute(sa.update(responses).where(*condition).values(values))

        await self._flusher.run_operation(response_id, operation)

    async def finish(
        self,
        response_id: str,
        status: str,
        result: Mapping[str, Any],
        output_items: Sequence[Item],
    ) -> bool:
        """End a response that this process runs, after the events handed to the flusher before.

        `result`: usage, error, incomplete_details. If it belongs to a conversation and is completed or
        incomplete, its input and output are added there. False where it was finished before.
        Raises Fenced, ResponseDeleted, StoreUnavailable.
        """
        assert status in TERMINAL, status

        def operation(connection: sa.Connection) -> bool:
            row = _finish(connection, response_id, status, dict(result), output_items)
            if row is None:
                return False
            if row.conversation_id is not None and status in ("completed", "incomplete"):
                expires_at = time.time() + self._ttl
                _add_to_conversation(connection, response_id, row.conversation_id, expires_at)
            return True

        try:
            is_first: bool = await self._flusher.run_operation(response_id, operation)
        finally:
            self._flusher.forget(response_id)
            self._follower.publish_end(response_id)
        return is_first

    async def request_cancel(self, response_id: str, owner: str | None = None) -> bool:
        """Ask whoever runs a response to cancel it; see Follower.cancellable. False: nobody runs it."""
        if not is_id(response_id):
            return False
        where = [responses.c.id == response_id, responses.c.status.not_in(TERMINAL)]
        if owner is not None:
            where.append(responses.c.owner == owner)
        async with self._database.write() as connection:
            result = await connection.execute(
                sa.update(responses).where(*where).values(cancel_requested=True)
            )
            if result.rowcount:
                await connection.run_sync(notify, CANCEL, [response_id])
        if result.rowcount:
            self._follower.publish_cancel(response_id)
        return bool(result.rowcount)

    async def delete(self, response_id: str, owner: str) -> bool:
        """Delete a response with all it has; one that runs is cancelled. False if there was none."""
        if not is_id(response_id):
            return False
        async with self._database.write() as connection:
            result = await connection.execute(
                sa.delete(responses).where(
                    responses.c.id == response_id, responses.c.owner == owner
                )
            )
            if result.rowcount:
                await connection.run_sync(notify, CANCEL, [response_id])
                await connection.run_sync(notify, END, [response_id])
        if result.rowcount:
            self._follower.publish_cancel(response_id)
            self._follower.publish_end(response_id)
        return bool(result.rowcount)

    async def chain(self, previous_response_id: str, owner: str) -> list[Item] | None:
        """Input and output of a response and of all before it, oldest first.

        None where its owner has no such response, or an earlier one is gone. Raises BadRequest for
        more than MAX_TURNS.
        """
        if not is_id(previous_response_id):
            return None
        newest = (
            sa.select(responses.c.id, responses.c.previous_response_id, sa.literal(0).label("age"))
            .where(responses.c.id == previous_response_id, responses.c.owner == owner)
            .cte("turns", recursive=True)
        )
        earlier = sa.select(
            responses.c.id, responses.c.previous_response_id, newest.c.age + 1
        ).where(
            responses.c.id == newest.c.previous_response_id,
            responses.c.owner == owner,
            newest.c.age < MAX_TURNS,
        )
        turns = newest.union_all(earlier)
        async with self._database.read() as connection:
            rows = (await connection.execute(sa.select(turns).order_by(turns.c.age.desc()))).all()
            if len(rows) > MAX_TURNS:
                raise BadRequest(
                    f"More than {MAX_TURNS} responses are linked by previous_response_id.",
                    param="previous_response_id",
                )
            if not rows or rows[0].previous_response_id is not None:
                return None
            turn_items = await connection.execute(
                sa.select(items.c.data)
                .join(turns, turns.c.id == items.c.response_id)
                .order_by(turns.c.age.desc(), items.c.row)
            )
            return list(turn_items.scalars())

    async def _row(
        self, connection: AsyncConnection, response_id: str, owner: str | None
    ) -> sa.Row[Any] | None:
        where = [responses.c.id == response_id]
        if owner is not None:
            where.append(responses.c.owner == owner)
        return (await connection.execute(sa.select(responses).where(*where))).one_or_none()


class Items:
    """Items by their ids, wherever they belong."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def resolve(self, ids: Sequence[str], owner: str) -> dict[str, Item]:
        """The owner's items of these ids, the newest where one occurs twice; without those that are not there."""
        sane = [each for each in ids if is_id(each)]
        result: dict[str, Item] = {}
        async with self._database.read() as connection:
            for start in range(0, len(sane), 500):
                rows = await connection.execute(
                    sa.select(items.c.id, items.c.data)
                    .where(items.c.id.in_(sane[start : start + 500]), items.c.owner == owner)
                    .order_by(items.c.row)
                )
                result.update((row.id, row.data) for row in rows)
        return result


def _finish(
    connection: sa.Connection,
    response_id: str,
    status: str,
    result: dict[str, Any],
    output_items: Sequence[Item],
) -> sa.Row[Any] | None:
    own = responses.c.id == response_id
    of_response = {"response_id": response_id}
    deltas = sa.type_coerce(chunks.c.deltas, sa.Text)
    end = sa.select(sa.func.coalesce(sa.func.max(chunks.c.seq + chunks.c.n), 0))
    size = ROW_BYTES + size_of(result, *output_items)
    finished = connection.execute(
        sa.update(responses)
        .where(own, responses.c.status.not_in(TERMINAL))
        .values(
            status=status,
            result=result,
            completed_at=time.time(),
            run_by=None,
            last_seq=end.where(chunks.c.response_id == response_id).scalar_subquery() - 1,
            bytes=responses.c.bytes + size + text_bytes(chunks, deltas, of_response),
        )
        .returning(responses.c.owner, responses.c.conversation_id)
    )
    row = finished.one_or_none()
    if row is not None:
        rows = item_rows(output_items, row.owner, role="output", response_id=response_id)
        if rows:
            connection.execute(sa.insert(items), rows)
        notify(connection, END, [response_id])
    return row


def _add_to_conversation(
    connection: sa.Connection, response_id: str, conversation_id: str, expires_at: float
) -> None:
    """Copy a response's items, unless the conversation was deleted meanwhile."""
    there = sa.exists().where(conversations.c.id == conversation_id)
    copies = (
        sa.select(
            items.c.id, items.c.owner, sa.literal(conversation_id), items.c.role, items.c.data
        )
        .where(items.c.response_id == response_id, there)
        .order_by(items.c.row)
    )
    connection.execute(
        sa.insert(items).from_select(["id", "owner", "conversation_id", "role", "data"], copies)
    )
    size = text_bytes(items, sa.type_coerce(items.c.data, sa.Text), {"response_id": response_id})
    connection.execute(
        sa.update(conversations)
        .where(conversations.c.id == conversation_id)
        .values(bytes=conversations.c.bytes + size, expires_at=expires_at)
    )
