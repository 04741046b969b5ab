"""The output folder while it is being filled: `.work` inside it, and nothing else until all is done."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from .errors import OutputError
from .summary import SUMMARY_FILE

WORK = ".work"


@contextmanager
def workplace(out: Path, settings: object, *, restart: bool, force: bool) -> Iterator[Path]:
    """The folder to work in; `settings` decide whether an unfinished run there may be continued.

    Raises OutputError when `out` holds finished rows (unless `force`), another choice's unfinished run (unless
    `restart`), files of someone else's, or a run that is still going on.
    """
    work = out / WORK
    _may_write(out, force=force or work.is_dir())
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / "lock").open("w")
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"--out {out}: another conversion is writing there") from None
        _same_settings(out, work, settings, restart=restart)
        (work / "parts").mkdir(exist_ok=True)
        yield work


def finish(work: Path, fresh: Path) -> None:
    """Move everything in `fresh` into the output folder, the summary last, and remove the work."""
    out = work.parent
    names = sorted(path.name for path in fresh.iterdir() if path.name != SUMMARY_FILE)
    # Without its summary a folder is not taken for finished; rows of an earlier run must not stay beside new ones.
    for old in [out / SUMMARY_FILE, *out.glob("*.jsonl"), *out.glob("*.parquet")]:
        if old.name not in names:
            old.unlink(missing_ok=True)
    for name in [*names, SUMMARY_FILE]:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        os.replace(fresh / name, out / name)
    shutil.rmtree(work)


def _may_write(out: Path, *, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {out}: is a file; give a folder")
    if force or not out.is_dir():
        return
    if (out / SUMMARY_FILE).exists():
        raise OutputError(f"--out {out}: holds finished rows; give another folder, or --force")
    if any(out.iterdir()):
        raise OutputError(f"--out {out}: is not empty and holds no conversion; give a new folder")


def _same_settings(out: Path, work: Path, settings: object, *, restart: bool) -> None:
    wanted = msgspec.json.format(msgspec.json.encode(settings, order="deterministic"))
    noted = work / "settings.json"
    if not restart and noted.exists() and noted.read_bytes() != wanted:
        raise OutputError(
            f"--out {out}: holds an unfinished run with other options or another version. "
            "Repeat its command to go on, or give --restart to throw it away"
        )
    if restart or not noted.exists():
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
    fresh = work / "settings.json.part"
    fresh.write_bytes(wanted)
    os.replace(fresh, noted)
