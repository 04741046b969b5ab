"""The output folder while it is being filled: `.work` inside it, and nothing else until all is done."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import msgspec

from kodolly_adapters.errors import OutputError

from .options import Format
from .output.dataset_card import CARD_FILE
from .output.pictures import LENGTHS, SOURCES
from .output.summary import SUMMARY_FILE
from .output.writers import REJECTED
from .part import SPLITS

FORMS = get_args(Format)

WORK = ".work"
SETTINGS = "settings.json"
FORCED = "forced"  # its presence says that this run may replace finished rows
# All that a conversion ever leaves in its folder, and all that one ever replaces or removes there.
OURS = (
    *(
        f"{split}{beside}.{form}"
        for split in SPLITS.values()
        for beside in ("", ".provenance")
        for form in FORMS
    ),
    REJECTED,
    CARD_FILE,
    LENGTHS,
    SOURCES,
    SUMMARY_FILE,
)


@contextmanager
def workplace(
    out: Path, arguments: Sequence[str], settings: object, *, restart: bool, force: bool
) -> Iterator[Path]:
    """The folder to work in; `settings` decide whether an unfinished run there may be continued.

    Raises OutputError when `out` holds finished rows (unless `force`), another choice's unfinished run (unless
    `restart`), an input or files of someone else's, or when a run there is still going on.
    """
    _may_write(out, arguments, force=force)
    work = out / WORK
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
        if force:
            (work / FORCED).touch()
        (work / "parts").mkdir(exist_ok=True)
        yield work


def finish(work: Path, fresh: Path) -> None:
    """Move everything in `fresh` into the output folder, the summary last, and remove the work."""
    out = work.parent
    (out / SUMMARY_FILE).unlink(missing_ok=True)  # without it a folder is not taken for finished
    made = [name for name in OURS if (fresh / name).exists()]
    for name in OURS:
        if name not in made:
            (out / name).unlink(missing_ok=True)
    for name in made:
        (out / name).parent.mkdir(exist_ok=True)
        os.replace(fresh / name, out / name)
    shutil.rmtree(work)


def _may_write(out: Path, arguments: Sequence[str], *, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {out}: is a file; give a folder")
    for argument in arguments:
        if Path(argument).resolve().is_relative_to(out.resolve()) and Path(argument).exists():
            raise OutputError(f"--out {out}: holds the input {argument}; give another folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    unfinished = (out / WORK / SETTINGS).exists()
    if (out / SUMMARY_FILE).exists():
        if not force and not (unfinished and (out / WORK / FORCED).exists()):
            raise OutputError(f"--out {out}: holds finished rows; give another folder, or --force")
    elif not unfinished:
        raise OutputError(f"--out {out}: is not empty and holds no conversion; give a new folder")


def _same_settings(out: Path, work: Path, settings: object, *, restart: bool) -> None:
    wanted = msgspec.json.format(msgspec.json.encode(settings, order="deterministic"))
    noted = work / SETTINGS
    same = noted.exists() and noted.read_bytes() == wanted
    if not same and not restart and any((work / "parts").glob("*.json")):
        raise OutputError(
            f"--out {out}: holds an unfinished run with other options or another version. "
            "Repeat its command to go on, or give --restart to throw it away"
        )
    if restart or not same:
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
    fresh = work / f"{SETTINGS}.part"
    fresh.write_bytes(wanted)
    os.replace(fresh, noted)
