"""`kodolly store`: a backup of a store in use, its restoration, and errors that name what is wrong."""

import asyncio
import contextlib
import re
import sqlite3
from pathlib import Path

import pytest
from support.stores import OWNER, commit, message, record

from kodolly.cli import main
from kodolly.store.store import Store


async def _use(url: str, response_id: str) -> None:
    async with Store(url) as store:
        await store.responses.create(record(id=response_id), [message("msg_1")])
        assert await commit(store, response_id, 0, "a") is None


async def _has(url: str, response_id: str) -> bool:
    async with Store(url) as store:
        return await store.responses.get(response_id, OWNER) is not None


def test_a_backup_brings_back_what_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Backed up while it is written; what came later is gone after the restoration."""
    url, copy = f"sqlite:///{tmp_path / 's.sqlite3'}", str(tmp_path / "copy.sqlite3")

    async def backed_up_in_use() -> None:
        async with Store(url) as store:
            await store.responses.create(record(id="resp_1"), [])
            assert await asyncio.to_thread(main, ["store", "backup", copy, "--store", url]) == 0

    asyncio.run(backed_up_in_use())
    asyncio.run(_use(url, "resp_2"))
    assert main(["store", "restore", copy, "--store", url]) == 0

    assert asyncio.run(_has(url, "resp_1"))
    assert not asyncio.run(_has(url, "resp_2"))
    assert (tmp_path / "copy.sqlite3").stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["backup", "there"], "there exists already"),
        (["restore", "there"], "cannot restore .* from there"),
        (["restore", "missing"], "cannot restore .* from missing"),
        (["upgrade", "--store", "none"], "name the store with --store URL"),
        (["upgrade", "--store", "mysql://u:geheim@h/d"], r"mysql://\*\*\*@h/d' is not a store"),
        (["backup", "f", "--store", "postgresql://u:geheim@h/d"], "use pg_dump"),
        (["restore", "f", "--store", "postgresql://u:geheim@h/d"], "use pg_restore"),
    ],
)
def test_errors_say_what_to_do(
    args: list[str],
    error: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, exit code 1, no password; the file there is left as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KODOLLY_API_STORE", raising=False)
    Path("there").write_text("mine", encoding="utf-8")
    assert main(["store", *args]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert re.search(error, said), said
    assert "geheim" not in said
    assert Path("there").read_text(encoding="utf-8") == "mine"


def test_upgrade_says_the_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty file becomes a store."""
    file = tmp_path / "s.sqlite3"
    assert main(["store", "upgrade", "--store", f"sqlite:///{file}"]) == 0
    assert "the store has schema " in capsys.readouterr().out
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM responses").fetchone() == (0,)
