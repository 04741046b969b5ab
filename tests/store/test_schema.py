"""The schema: made once whoever starts, brought forward, never used by a program that is too old."""

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from support.stores import commit, record

from kodolly.errors import StoreError, StoreUnavailable
from kodolly.store import migrations
from kodolly.store.database import Database
from kodolly.store.store import open_store
from kodolly.store.tables import metadata

STEPS = [
    step.revision
    for step in ScriptDirectory(str(Path(migrations.__file__).parent)).walk_revisions()
][::-1]


async def test_many_processes_may_start_at_once(url: str) -> None:
    """Each finds the tables made, whoever made them."""
    databases = [Database(url) for _ in range(6)]
    assert await asyncio.gather(*(each.open() for each in databases)) == [STEPS[-1]] * 6
    for each in databases:
        await each.close()


async def test_the_migrations_make_the_tables_that_the_code_uses(url: str) -> None:
    """Nothing differs but SQLite's count of chunks."""
    database = Database(url)
    await database.open()

    def differences(connection: sa.Connection) -> list[Any]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with database.read() as connection:
        found = [str(each) for each in await connection.run_sync(differences)]
    await database.close()
    extra = [each for each in found if "alembic_version" not in each]
    allowed = ("remove_column", "'chunks'") if database.is_sqlite else ()
    assert [each for each in extra if not all(part in each for part in allowed or ("\0",))] == []


@pytest.mark.parametrize("version", STEPS)
async def test_every_released_schema_is_brought_forward(url: str, version: str) -> None:
    """A store of each earlier version opens, and works."""
    database = Database(url)
    assert await database.open(version) == version
    await database.close()

    store = await open_store(url)
    stored = record()
    await store.responses.create(stored, [])
    assert await commit(store, stored.id, 0, "a") is None
    await store.close()


def test_the_newest_step_is_the_one_that_processes_look_for() -> None:
    """A new migration has its number in migrations/__init__.py as well."""
    assert STEPS[-1] == migrations.NEWEST


async def test_a_newer_schema_is_refused(url: str) -> None:
    """The error names both versions and what to do; nothing is changed."""
    database = Database(url)
    await database.open()
    async with database.write() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=rf"schema 9999.* up to {STEPS[-1]}: start a newer"):
        await database.open()
    await database.close()


async def test_others_cannot_read_the_file(tmp_path: Path) -> None:
    """What people have said is theirs: file and folder are of this user alone."""
    file = tmp_path / "new" / "store.sqlite3"
    store = await open_store(f"sqlite:///{file}")
    await store.responses.create(record(), [])
    for path in file.parent.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    await store.close()


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """It is left as it is."""
    file = tmp_path / "store.sqlite3"
    file.write_text("these are my notes, and no database at all\n" * 50, encoding="utf-8")
    with pytest.raises(StoreError, match=r"store\.sqlite3 is not a SQLite database"):
        await open_store(f"sqlite:///{file}")
    assert file.read_text(encoding="utf-8").startswith("these are my notes")


async def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The error says which setting to change."""
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StoreError, match=r"cannot write the store .*--store"):
        await open_store(f"sqlite:///{tmp_path / 'file' / 'store.sqlite3'}")


async def test_a_server_that_is_not_there_is_unavailable_and_its_password_unsaid() -> None:
    """A refused connection is StoreUnavailable."""
    with pytest.raises(StoreUnavailable) as caught:
        await open_store("postgresql://me:geheim@127.0.0.1:9/kodolly")
    assert "geheim" not in str(caught.value)
