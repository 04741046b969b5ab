"""The connections to the database, and one class of error for whatever goes wrong with it."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from kodolly.errors import StoreError, StoreUnavailable
from kodolly.log_safe import describe_error
from kodolly.store.migrations import NEWEST

log = logging.getLogger(__name__)

T = TypeVar("T")

BUSY_TIMEOUT = 5.0  # seconds that a SQLite write waits for another process's
CONNECT_TIMEOUT = 5.0
POOL_SIZE, POOL_OVERFLOW = 4, 8
# A session that a stopped process left in the middle of a transaction would hold its locks for ever.
IDLE_IN_TRANSACTION_MS = 2000
PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",  # a crash of the machine may lose the last second, never the file
    "PRAGMA foreign_keys=ON",
    "PRAGMA journal_size_limit=67108864",
)


class Database:
    """One process's connections. Reads run beside each other; on SQLite one write at a time."""

    def __init__(self, url: str) -> None:
        """`url`: as settings.store_url.checked_store_url returns it. Nothing is opened yet."""
        self.url = sa.make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._write_turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "kodolly-store")  # started by its first use
        self._thread_engine: sa.Engine | None = None
        self.engine: AsyncEngine = _sqlite(self.url) if self.is_sqlite else _postgresql(self.url)

    @property
    def file(self) -> Path:
        """The SQLite file."""
        return Path(str(self.url.database))

    async def open(self, to: str = NEWEST) -> str:
        """Make the file and the tables, or bring them up to date. Returns the schema's version.

        Raises StoreUnavailable, or StoreError for a database that this program cannot use.
        """
        if self.is_sqlite:
            _create_private(self.file)
        async with self.read() as connection:
            if await connection.run_sync(_version) == to:
                return to
        logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of each of its plugins
        from kodolly.store.migrations.upgrade import upgrade

        async with self.write() as connection:
            version = await connection.run_sync(upgrade, to)
        log.info("the store has schema %s", version)
        return version

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close_in_thread)
        self._thread.shutdown()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read with; all reads see one state on SQLite. Raises StoreUnavailable."""
        async with self._connection() as connection, connection.begin():
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed at the end. Raises StoreUnavailable, IntegrityError."""
        if not self.is_sqlite:
            async with self._connection() as connection, connection.begin():
                yield connection
            return
        async with self._write_turn, self._connection() as connection:
            await connection.execution_options(kodolly_write=True)
            async with connection.begin():
                yield connection

    async def run_write(self, work: Callable[[sa.Connection], T]) -> T:
        """`work` in a write transaction; on SQLite all of it is one step of a thread.

        Raises StoreUnavailable, IntegrityError, and what `work` raises.
        """
        if not self.is_sqlite:
            async with self.write() as connection:
                return await connection.run_sync(work)
        async with self._write_turn:
            loop = asyncio.get_running_loop()
            try:
                return await loop.run_in_executor(self._thread, self._write_in_thread, work)
            except (IntegrityError, ProgrammingError):
                raise
            except (DBAPIError, sqlite3.DatabaseError) as error:
                raise self._unavailable(error) from error

    def _write_in_thread(self, work: Callable[[sa.Connection], T]) -> T:
        if self._thread_engine is None:
            self._thread_engine = _sqlite_of_thread(self.url)
        with self._thread_engine.begin() as connection:
            return work(connection)

    def _close_in_thread(self) -> None:
        if self._thread_engine is not None:
            self._thread_engine.dispose()
            self._thread_engine = None

    @asynccontextmanager
    async def driver(self) -> AsyncIterator[Any]:
        """asyncpg's own connection, for a moment. Raises StoreUnavailable."""
        async with self._connection() as connection:
            raw = await connection.get_raw_connection()
            try:
                yield raw.driver_connection
            except asyncpg.PostgresError as error:
                await connection.invalidate()
                raise self._unavailable(error) from error
            except BaseException:
                await connection.invalidate()
                raise

    @asynccontextmanager
    async def listener(self) -> AsyncIterator[Any]:
        """asyncpg's own connection, out of the pool for good, to LISTEN on. Raises StoreUnavailable."""
        async with self._connection() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            try:
                yield driver
            finally:
                await connection.invalidate()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        try:
            connection = await self.engine.connect()
        except Exception as error:  # a driver's own classes, the network's, the pool's
            raise self._unavailable(error) from error
        try:
            yield connection
        except (IntegrityError, ProgrammingError):
            raise
        except (DBAPIError, OSError, TimeoutError) as error:
            raise self._unavailable(error) from error
        finally:
            await asyncio.shield(_close(connection))

    def _unavailable(self, error: Exception) -> Exception:
        cause = getattr(error, "orig", None) or error
        text = describe_error(cause)
        if self.is_sqlite and isinstance(error, DatabaseError) and "not a database" in text:
            return StoreError(f"{self.file} is not a SQLite database: {text}")
        return StoreUnavailable(f"The store cannot be reached: {text}")


def _version(connection: sa.Connection) -> str | None:
    """The schema's version; None where there is none."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    version: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return version


async def _close(connection: AsyncConnection) -> None:
    try:
        await connection.close()
    except (DBAPIError, OSError):  # it is broken, and gone with that
        await connection.invalidate()


def _create_private(file: Path) -> None:
    """Make an empty file, and its folder, that no other user can read."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise StoreError(
            f"cannot write the store {file}: {error.strerror}: give another one with --store, or --store none"
        ) from error


def _sqlite(url: sa.URL) -> AsyncEngine:
    engine = create_async_engine(
        url.set(drivername="sqlite+aiosqlite"),
        connect_args={"timeout": BUSY_TIMEOUT},
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
    )

    _prepare_sqlite(engine.sync_engine)
    return engine


def _sqlite_of_thread(url: sa.URL) -> sa.Engine:
    """For write transactions alone, of one thread."""
    engine = sa.create_engine(
        url.set(drivername="sqlite"),
        connect_args={"timeout": BUSY_TIMEOUT},
        pool_size=1,
        execution_options={"kodolly_write": True},
    )
    _prepare_sqlite(engine)
    return engine


def _prepare_sqlite(engine: sa.Engine) -> None:
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # `begin` below says when a transaction starts
        cursor = connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    def begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("kodolly_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    sa.event.listen(engine, "connect", configure)
    sa.event.listen(engine, "begin", begin)


def _postgresql(url: sa.URL) -> AsyncEngine:
    return create_async_engine(
        url.set(drivername="postgresql+asyncpg"),
        connect_args={
            "timeout": CONNECT_TIMEOUT,
            "server_settings": {
                "application_name": "kodolly",
                "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS),
            },
        },
        pool_size=POOL_SIZE,
        max_overflow=POOL_OVERFLOW,
        pool_timeout=CONNECT_TIMEOUT,
        pool_pre_ping=True,
    )
