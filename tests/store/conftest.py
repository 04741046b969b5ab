"""Every test of the store runs on a SQLite file and on a real PostgreSQL."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.postgres import Postgres, running_postgres

from kodolly.store.store import Store


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server for the whole session."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite3'}"
    server: Postgres = request.getfixturevalue("postgres")
    return await server.new_database()


@pytest.fixture
async def new_store(url: str) -> AsyncIterator[Callable[..., Any]]:
    """Opens stores of that database, as several processes would, and closes them after the test."""
    stores: list[Store] = []

    async def new(**options: Any) -> Store:
        store = Store(url, **options)
        await store.open()
        stores.append(store)
        return store

    yield new
    for store in stores:
        await store.close()
