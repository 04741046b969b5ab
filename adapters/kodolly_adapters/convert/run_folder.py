"""The output folder during a run: it holds only `.work`, until the finished files are moved into it."""

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
# All files that a conversion writes into its folder, and the only ones it ever replaces or removes there. The
# summary is the last, since it marks a folder as finished.
OUTPUT_FILES = (
    *(f"{name}{beside}.{form}" for name in schema.SPLITS for beside in ("", ".provenance")
      for form in get_args(Format)),
    schema.REJECTED_FILE, schema.CARD_FILE, schema.LENGTHS_PICTURE, schema.SOURCES_PICTURE,
    SUMMARY_FILE,
)  # fmt: skip
FORCE_MARK = "forced"  # a file in .work: the unfinished run may replace finished rows


@contextmanager
def run_folder(
    out: Path, arguments: Sequence[str], settings: dict[str, Any], *, restart: bool, force: bool
) -> Iterator[Path]:
    """The folder to work in. An unfinished run there is continued if it has the same `settings`.

    Raises OutputError when `out` holds finished rows (unless `force`), an unfinished run with other settings
    (unless `restart`), an input, or files of another origin, and when another run is writing there.
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
            (work / FORCE_MARK).touch()
        (work / "parts").mkdir(exist_ok=True)
        yield work


def finish(work: Path, output: Path) -> None:
    """Move the files of `output` into the output folder, the summary last, and remove `work`."""
    out = work.parent
    (out / SUMMARY_FILE).unlink(missing_ok=True)  # a folder without it does not count as finished
    for name in OUTPUT_FILES:
        if (output / name).exists():
            (out / name).parent.mkdir(exist_ok=True)
            os.replace(output / name, out / name)
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
    is_unfinished = (out / WORK / SETTINGS).exists()
    if (out / SUMMARY_FILE).exists():
        if not force and not (is_unfinished and (out / WORK / FORCE_MARK).exists()):
            raise OutputError(f"--out {out}: holds finished rows; give another folder, or --force")
    elif not is_unfinished:
        raise OutputError(f"--out {out}: is not empty and holds no conversion; give a new folder")


def _same_settings(out: Path, work: Path, settings: dict[str, Any], *, restart: bool) -> None:
    path = work / SETTINGS
    is_same = read_json(path) == settings
    if not is_same and not restart and any((work / "parts").glob("*.part")):
        raise OutputError(
            f"--out {out}: holds an unfinished run with other options or another version. "
            "Repeat its command to go on, or give --restart to delete it"
        )
    if restart or not is_same:
        for folder in (work / "parts", work / "out"):
            shutil.rmtree(folder, ignore_errors=True)
    write_json(path, settings)
