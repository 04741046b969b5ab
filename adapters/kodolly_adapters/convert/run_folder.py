"""The output folder while it is being filled: `.work` inside it, and nothing else until all is done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, get_args

from kodolly_adapters.errors import OutputError
from kodolly_adapters.files import locked, read_json, write_json

from . import schema
from .options import Format
from .schema import SUMMARY_FILE, WORK

SETTINGS = "settings.json"
# All files that a conversion leaves in its folder, and the only ones it ever replaces or removes there. The
# summary, which says that a folder is finished, is the last.
OUTPUT_FILES = (
    *(f"{name}{beside}.{form}" for name in schema.SPLITS for beside in ("", ".provenance")
      for form in get_args(Format)),
    schema.REJECTED_FILE, schema.CARD_FILE, schema.LENGTHS_PICTURE, schema.SOURCES_PICTURE,
    SUMMARY_FILE,
)  # fmt: skip
FORCED = "forced"  # its presence says that this run may replace finished rows


@contextmanager
def run_folder(
    out: Path, arguments: Sequence[str], settings: dict[str, Any], *, restart: bool, force: bool
) -> Iterator[Path]:
    """The folder to work in; `settings` decide whether an unfinished run there may be continued.

    Raises OutputError when `out` holds finished rows (unless `force`), another choice's unfinished run (unless
    `restart`), an input or files of someone else's, or when a run there is still going on.
    """
    _may_write(out, arguments, force=force)
    work = out / WORK
    with ExitStack() as stack:
        try:
            work.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(work / "lock", wait=False))
        except BlockingIOError:
            raise OutputError(f"--out {out}: another conversion is writing there") from None
        except OSError as error:
            raise OutputError(f"--out {out}: cannot be written: {error.strerror}") from error
        _same_settings(out, work, settings, restart=restart)
        if force:
            (work / FORCED).touch()
        (work / "parts").mkdir(exist_ok=True)
        yield work


def finish(work: Path, fresh: Path) -> None:
    """Move everything in `fresh` into the output folder, the summary last, and remove the work."""
    out = work.parent
    (out / SUMMARY_FILE).unlink(missing_ok=True)  # without it a folder is not taken for finished
    for name in OUTPUT_FILES:
        if (fresh / name).exists():
            (out / name).parent.mkdir(exist_ok=True)
            os.replace(fresh / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)
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


def _same_settings(out: Path, work: Path, settings: dict[str, Any], *, restart: bool) -> None:
    path = work / SETTINGS
    same = read_json(path) == settings
    if not same and not restart and any((work / "parts").glob("*.part")):
        raise OutputError(
            f"--out {out}: holds an unfinished run with other options or another version. "
            "Repeat its command to go on, or give --restart to throw it away"
        )
    if restart or not same:
        for folder in (work / "parts", work / "out"):
            shutil.rmtree(folder, ignore_errors=True)
    write_json(path, settings)
