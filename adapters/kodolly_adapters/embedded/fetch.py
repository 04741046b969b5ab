"""Creates a model directory: complete or not at all, and by one process at a time."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from kodolly_adapters.card import CARD
from kodolly_adapters.errors import FetchError
from kodolly_adapters.files import locked, read_json, replacing

KOREAN = "kodolly-ko-8m"  # the model directory inside this package
FOLDER = Path(".kodolly/models")  # where `kodolly fetch` writes

Say = Callable[[str], None]  # shows the user one line of progress


def packaged() -> Path:
    """The Korean model's directory inside this package."""
    return Path(str(resources.files(__package__).joinpath(KOREAN)))


def copy_packaged(fresh: Path, _: Say) -> None:
    """Copy the Korean model into the empty directory `fresh`."""
    for path in packaged().iterdir():
        shutil.copyfile(path, fresh / path.name)


def is_model(directory: Path) -> bool:
    """Is `directory` a finished model directory, with a card and weights?"""
    return (directory / CARD).is_file() and any(directory.glob("*.safetensors"))


def place(out: Path, build: Callable[[Path], None], *, force: bool = False) -> bool:
    """Run `build` on an empty directory beside `out`, and rename that to `out`.

    Returns False if `out` already is a finished model, for which nothing is done. A killed process
    leaves only a hidden directory, which the next run removes. Raises FetchError if `out` holds
    something else, or the disk is full.
    """
    if is_model(out) and not force:
        return False
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.parent / f".{out.name}.lock", wait=True):
            if is_model(out) and not force:
                return False  # another process made it while we waited
            _refuse_foreign(out)
            with replacing(out) as fresh:
                build(fresh)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FetchError(f"the disk of {out.parent} is full") from error
        raise FetchError(f"cannot write {out}: {error}") from error
    return True


def _refuse_foreign(out: Path) -> None:
    """Raise FetchError unless `out` is missing, empty, or was made by this command."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    card = read_json(out / CARD) or {}
    if not str(card.get("created_by")).startswith("kodolly fetch"):
        raise FetchError(f"{out} exists and was not made by kodolly fetch; choose another --out")
