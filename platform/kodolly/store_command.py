"""`kodolly store backup FILE`, `restore FILE`, `upgrade`: the database of stored responses as a whole."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from kodolly.errors import SettingsError, StoreError
from kodolly.options import resolve
from kodolly.settings import NO_STORE, SECTIONS, StoreSettings

USAGE = """usage: kodolly store backup FILE | restore FILE | upgrade   [--store URL] [--config FILE]

backup FILE    write a copy of the SQLite store, also while it is in use
restore FILE   replace the SQLite store by such a copy; whoever serves goes on with it
upgrade        bring the tables to this version's schema, as `kodolly api` does when it starts

The store is that of `kodolly api`: its --store, environment variable and settings file count here too.
For PostgreSQL use pg_dump and pg_restore.
"""
BUSY_TIMEOUT = 30.0  # seconds
PAGES = 1000  # copied at a time: writers get in between


def main(argv: Sequence[str]) -> int:
    """Runs one of the three. Raises SettingsError, StoreError, StoreUnavailable."""
    if not argv or {"-h", "--help"} & set(argv):
        sys.stdout.write(USAGE)
        return 0 if argv else 2
    parser = argparse.ArgumentParser(prog="kodolly store", add_help=False, allow_abbrev=False)
    parser.add_argument("action", choices=("backup", "restore", "upgrade"))
    parser.add_argument("file", nargs="?")
    options, flags = parser.parse_known_args(argv)
    settings = resolve(StoreSettings, flags, prog="kodolly store", sections=SECTIONS).settings
    url = settings.store_url()
    if url is None:
        raise SettingsError(f"--store is {NO_STORE}: name the store with --store URL")
    if (options.file is None) != (options.action == "upgrade"):
        parser.error(f"{options.action} takes {'no' if options.file else 'a'} FILE")
    if options.action == "upgrade":
        version = asyncio.run(_upgrade(url))
        sys.stdout.write(f"the store has schema {version}\n")
        return 0
    if not url.startswith("sqlite:"):
        tool = "pg_dump" if options.action == "backup" else "pg_restore"
        raise StoreError(f"this store is PostgreSQL's: use {tool} (docs/store.md)")
    store = Path(url.removeprefix("sqlite:///"))
    if options.action == "backup":
        backup(store, Path(options.file))
    else:
        restore(Path(options.file), store)
        asyncio.run(_upgrade(url))
    return 0


def backup(store: Path, file: Path) -> None:
    """Copy a store that may be in use to a new file. Raises StoreError."""
    if file.exists():
        raise StoreError(f"{file} exists already: give another name, or remove it")
    part = file.with_name(file.name + ".part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with _opened(store, "ro") as source, _opened(part, "rw") as target:
            source.backup(target, pages=PAGES, sleep=0.01)
        part.rename(file)
    except (OSError, sqlite3.Error) as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"cannot copy {store} to {file}: {error}") from error


def restore(file: Path, store: Path) -> None:
    """Replace a store by a copy, in one transaction. Raises StoreError."""
    try:
        with _opened(file, "ro") as source:
            source.execute("SELECT version_num FROM alembic_version").fetchone()
            if source.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise StoreError(f"{file} is damaged: `PRAGMA integrity_check` says where")
            store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(store, os.O_CREAT | os.O_RDWR, 0o600))
            with _opened(store, "rw") as target:
                source.backup(target)
                target.execute("PRAGMA journal_mode=WAL")
                target.execute(
                    "DELETE FROM processes"
                )  # those of then: what they left is taken over
                target.commit()
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"cannot restore {store} from {file}: {error}") from error


def _opened(file: Path, mode: str) -> contextlib.closing[sqlite3.Connection]:
    """Opens a file that exists. Raises sqlite3.Error."""
    uri = f"{file.absolute().as_uri()}?mode={mode}"
    return contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT))


async def _upgrade(url: str) -> str:
    from kodolly.store.database import Database  # only where it is needed: SQLAlchemy

    database = Database(url)
    try:
        return await database.open()
    finally:
        await database.close()
