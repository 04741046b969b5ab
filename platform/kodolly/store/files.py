"""Uploaded files and those that batches make: one row each, and their bytes in parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from kodolly.store.database import Database
from kodolly.store.quota import Quota
from kodolly.store.records import is_id
from kodolly.store.tables import file_parts, files

PART = 512 * 1024  # bytes


@dataclass
class FileRecord:
    """A file without its bytes. Times: seconds since 1970."""

    id: str
    owner: str
    filename: str
    purpose: str  # batch, or batch_output
    created_at: float
    expires_at: float = 0.0
    bytes: int = 0


class Files:
    """The files of all clients; each sees its own alone."""

    def __init__(self, database: Database, quota: Quota, ttl: float) -> None:
        """`ttl`: seconds that a file is kept."""
        self._database = database
        self._quota = quota
        self._ttl = ttl

    async def create(self, record: FileRecord, data: bytes) -> None:
        """Store a file. Raises StoreFull, StoreUnavailable."""
        await self._quota.reserve(record.owner, len(data))
        async with self._database.write() as connection:
            await self.begin(connection, record)
            await self.extend(connection, record.id, 0, data)
        record.bytes = len(data)

    async def begin(self, connection: AsyncConnection, record: FileRecord) -> None:
        """An empty file, in a transaction of the caller's; in place of one of that id."""
        record.filename = record.filename.replace("\0", "")
        record.expires_at = record.created_at + self._ttl
        await connection.execute(sa.delete(files).where(files.c.id == record.id))
        await connection.execute(sa.insert(files).values(**asdict(record)))

    async def extend(
        self, connection: AsyncConnection, file_id: str, part: int, data: bytes
    ) -> int:
        """Add bytes from part number `part` on; the number of the next part."""
        rows = [
            {"file_id": file_id, "part": part + number, "data": data[start : start + PART]}
            for number, start in enumerate(range(0, len(data), PART))
        ]
        if rows:
            await connection.execute(sa.insert(file_parts), rows)
            await connection.execute(
                sa.update(files)
                .where(files.c.id == file_id)
                .values(bytes=files.c.bytes + len(data))
            )
        return part + len(rows)

    async def get(self, file_id: str, owner: str) -> FileRecord | None:
        """A file; None if its owner has none of that id."""
        if not is_id(file_id):
            return None
        async with self._database.read() as connection:
            row = (
                await connection.execute(
                    sa.select(files).where(files.c.id == file_id, files.c.owner == owner)
                )
            ).one_or_none()
        return None if row is None else FileRecord(**row._mapping)

    async def list_files(
        self, owner: str, *, after: str | None, limit: int, purpose: str | None = None
    ) -> tuple[list[FileRecord], bool]:
        """The owner's files, newest first, after the one with id `after`; whether there are more."""
        where = [files.c.owner == owner]
        if purpose is not None:
            where.append(files.c.purpose == purpose)
        if after is not None:
            last = await self.get(after, owner)
            if last is None:
                return [], False
            key = sa.tuple_(files.c.created_at, files.c.id)
            where.append(key < sa.tuple_(last.created_at, last.id))
        async with self._database.read() as connection:
            rows = await connection.execute(
                sa.select(files)
                .where(*where)
                .order_by(files.c.created_at.desc(), files.c.id.desc())
                .limit(limit + 1)
            )
            page = [FileRecord(**row._mapping) for row in rows]
        return page[:limit], len(page) > limit

    async def parts(self, file_id: str) -> AsyncIterator[bytes]:
        """A file's bytes, in order, one query a part."""
        number = 0
        while True:
            async with self._database.read() as connection:
                data = await connection.scalar(
                    sa.select(file_parts.c.data).where(
                        file_parts.c.file_id == file_id, file_parts.c.part == number
                    )
                )
            if data is None:
                return
            yield data
            number += 1

    async def delete(self, file_id: str, owner: str) -> bool:
        """Delete a file. False if there was none."""
        if not is_id(file_id):
            return False
        async with self._database.write() as connection:
            result = await connection.execute(
                sa.delete(files).where(files.c.id == file_id, files.c.owner == owner)
            )
            return bool(result.rowcount)
