"""Where a base model's files are: a folder, the embedded model's package, or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from kodolly_adapters.embedded.fetch import FOLDER, KOREAN, packaged
from kodolly_adapters.errors import BaseError, first_line

SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*")
FILES = ("*.safetensors", *SMALL_FILES)
# Other forms of the same weights, which some models have beside: subfolders, and Mistral's own.
UNWANTED = ("*/*", "consolidated*")


class Base(NamedTuple):
    """A base on this machine. `revision` is the hub's commit; None for a folder."""

    folder: Path
    revision: str | None = None


def is_hub_id(name: str) -> bool:
    """Whether `name` reads as ORGANISATION/NAME on the hub, and no folder here has that name."""
    return not (name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name).exists())


def local_folder(name: str) -> Path | None:
    """The folder called `name`; the embedded model's package for its name; None for anything else."""
    if Path(name).is_dir():
        return Path(name)
    return packaged() if name == KOREAN else None


def locate(
    name: str,
    revision: str | None = None,
    *,
    files: Sequence[str] = FILES,
    say: Callable[[str], object] = lambda _: None,
) -> Base:
    """The base called `name`. From the hub those `files` are fetched that its cache does not hold yet.

    `revision` is a branch, tag or commit there (default: the main branch). Raises BaseError where there is none.
    """
    if folder := local_folder(name):
        return Base(folder)
    if not is_hub_id(name):
        made = Path(name).parent == FOLDER
        hint = f". `kodolly fetch --model {Path(name).name}` makes it" if made else ""
        raise BaseError(f"base {name}: no such folder{hint}")
    from huggingface_hub import snapshot_download

    say(f"taking {name} from the hub, or from its cache")
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(files),
                ignore_patterns=list(UNWANTED),
            )
        )
    except Exception as error:  # noqa: BLE001 - its kinds of error change
        raise BaseError(
            f"base {name}: no folder here, and it cannot be fetched from the hub: {first_line(error)}"
        ) from None
    return Base(folder, folder.name)
