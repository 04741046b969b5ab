"""Conversations, and lists of items."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from kodolly.errors import BadRequest
from kodolly.store.database import Database
from kodolly.store.quota import Quota, size_of
from kodolly.store.records import ConversationRecord, Item, ItemPage, is_id
from kodolly.store.tables import conversations, items


def item_rows(
    new: Sequence[Item],
    owner: str,
    *,
    role: str,
    response_id: str | None = None,
    conversation_id: str | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table of items. Each item has its id in "id"."""
    return [
        {
            "id": item["id"],
            "owner": owner,
            "response_id": response_id,
            "conversation_id": conversation_id,
            "role": role,
            "data": item,
        }
        for item in new
    ]


async def insert_items(
    connection: AsyncConnection,
    new: Sequence[Item],
    owner: str,
    *,
    role: str,
    response_id: str | None = None,
    conversation_id: str | None = None,
) -> None:
    """Add items at the end of a response's or a conversation's. Each has its id in "id"."""
    rows = item_rows(
        new, owner, role=role, response_id=response_id, conversation_id=conversation_id
    )
    if rows:
        await connection.execute(sa.insert(items), rows)


async def page_of_items(
    connection: AsyncConnection,
    where: Sequence[sa.ColumnElement[bool]],
    *,
    after: str | None,
    limit: int,
    order: str,
) -> ItemPage:
    """Some of the items that `where` selects. Raises BadRequest where `after` is none of them."""
    is_ascending = order == "asc"
    conditions = list(where)
    if after is not None:
        last = None
        if is_id(after):
            last = await connection.scalar(
                sa.select(sa.func.max(items.c.row)).where(*where, items.c.id == after)
            )
        if last is None:
            raise BadRequest(f"There is no item {after!r} here.", param="after")
        conditions.append(items.c.row > last if is_ascending else items.c.row < last)
    row = items.c.row
    rows = await connection.execute(
        sa.select(items.c.data)
        .where(*conditions)
        .order_by(row if is_ascending else row.desc())
        .limit(limit + 1)
    )
    page = list(rows.scalars())
    return ItemPage(page[:limit], len(page) > limit)


class Conversations:
    """The conversations of all clients; each sees its own alone."""

    def __init__(self, database: Database, quota: Quota, ttl: float) -> None:
        """`ttl`: seconds that a conversation is kept after it was last added to."""
        self._database = database
        self._quota = quota
        self._ttl = ttl

    async def create(self, record: ConversationRecord, new: Sequence[Item] = ()) -> None:
        """Store a new conversation. Raises StoreFull, StoreUnavailable."""
        record.bytes = size_of(record.metadata, *new)
        await self._quota.reserve(record.owner, record.bytes)
        record.expires_at = record.created_at + self._ttl
        async with self._database.write() as connection:
            await connection.execute(sa.insert(conversations).values(**asdict(record)))
            await insert_items(
                connection, new, record.owner, role="input", conversation_id=record.id
            )

    async def get(self, conversation_id: str, owner: str) -> ConversationRecord | None:
        """A conversation; None if its owner has none of that id."""
        if not is_id(conversation_id):
            return None
        async with self._database.read() as connection:
            return await self._record(connection, conversation_id, owner)

    async def update(
        self, conversation_id: str, owner: str, metadata: Mapping[str, Any]
    ) -> ConversationRecord | None:
        """Replace its metadata; None if there is no such conversation."""
        if not is_id(conversation_id):
            return None
        async with self._database.write() as connection:
            await connection.execute(
                sa.update(conversations)
                .where(*_own(conversation_id, owner))
                .values(metadata=dict(metadata))
            )
            return await self._record(connection, conversation_id, owner)

    async def delete(self, conversation_id: str, owner: str) -> bool:
        """Delete a conversation and its items. False if there was none."""
        if not is_id(conversation_id):
            return False
        async with self._database.write() as connection:
            result = await connection.execute(
                sa.delete(conversations).where(*_own(conversation_id, owner))
            )
            return bool(result.rowcount)

    async def add_items(self, conversation_id: str, owner: str, new: Sequence[Item]) -> bool:
        """Add items at its end. False if there is no such conversation. Raises StoreFull."""
        if not is_id(conversation_id):
            return False
        size = size_of(*new)
        await self._quota.reserve(owner, size)
        async with self._database.write() as connection:
            result = await connection.execute(
                sa.update(conversations)
                .where(*_own(conversation_id, owner))
                .values(bytes=conversations.c.bytes + size, expires_at=time.time() + self._ttl)
            )
            if result.rowcount:
                await insert_items(
                    connection, new, owner, role="input", conversation_id=conversation_id
                )
            return bool(result.rowcount)

    async def list_items(
        self,
        conversation_id: str,
        owner: str,
        *,
        after: str | None = None,
        limit: int = 20,
        order: str = "desc",
    ) -> ItemPage | None:
        """Some of its items; None if there is no such conversation. Raises BadRequest for `after`."""
        if not is_id(conversation_id):
            return None
        async with self._database.read() as connection:
            if await self._record(connection, conversation_id, owner) is None:
                return None
            where = (items.c.conversation_id == conversation_id,)
            return await page_of_items(connection, where, after=after, limit=limit, order=order)

    async def get_item(self, conversation_id: str, item_id: str, owner: str) -> Item | None:
        """One item; None if there is none."""
        if not (is_id(conversation_id) and is_id(item_id)):
            return None
        async with self._database.read() as connection:
            rows = await connection.execute(
                sa.select(items.c.data).where(*_own_item(conversation_id, item_id, owner))
            )
            item: Item | None = rows.scalars().first()
            return item

    async def delete_item(self, conversation_id: str, item_id: str, owner: str) -> bool:
        """Delete one item. False if there was none."""
        if not (is_id(conversation_id) and is_id(item_id)):
            return False
        async with self._database.write() as connection:
            result = await connection.execute(
                sa.delete(items).where(*_own_item(conversation_id, item_id, owner))
            )
            return bool(result.rowcount)

    async def _record(
        self, connection: AsyncConnection, conversation_id: str, owner: str
    ) -> ConversationRecord | None:
        rows = await connection.execute(
            sa.select(conversations).where(*_own(conversation_id, owner))
        )
        row = rows.one_or_none()
        return None if row is None else ConversationRecord(**row._mapping)


def _own(conversation_id: str, owner: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (conversations.c.id == conversation_id, conversations.c.owner == owner)


def _own_item(conversation_id: str, item_id: str, owner: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        items.c.conversation_id == conversation_id,
        items.c.id == item_id,
        items.c.owner == owner,
    )
