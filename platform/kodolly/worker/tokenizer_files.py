"""Where the files of a tokenizer are: a directory, or what the hub's cache or the hub has."""

from __future__ import annotations

import logging
from pathlib import Path

from kodolly.errors import SettingsError

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# What a worker reads of a model on the hub: all but its weights.
SMALL_FILES = ("*.json", "*.jinja", "*.model")

log = logging.getLogger(__name__)


def small_files(model: str) -> Path | None:
    """The folder with a hub id's configs, tokenizer and chat template; None, and a line in the log, if there is none.

    The engine fetches the weights, and says it if there are none.
    """
    try:
        from huggingface_hub import snapshot_download

        folder = Path(
            snapshot_download(model, allow_patterns=list(SMALL_FILES), ignore_patterns=["*/*"])
        )
    except Exception as error:  # noqa: BLE001 - no such package; or the hub's own errors, httpx's
        reason = str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__
        log.warning("%s: its small files cannot be fetched from the hub: %s", model, reason)
        return None
    log.info("%s: revision %s of the hub", model, folder.name)
    return folder


def tokenizer_directory(tokenizer: str) -> Path:
    """The directory with the tokenizer's files. Raises SettingsError if there is none.

    A hub id is looked up in the hub's cache first, and fetched (three small files) if it is not there.
    """
    path = Path(tokenizer)
    if path.is_dir():
        if not any((path / name).is_file() for name in FILES):
            raise SettingsError(f"--tokenizer: {tokenizer} has none of {', '.join(FILES)}")
        return path
    if tokenizer.startswith((".", "/", "~")) or tokenizer.count("/") != 1:
        raise SettingsError(f"--tokenizer: no directory {tokenizer}")
    return _from_hub(tokenizer)


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SettingsError(
            f"--tokenizer: no directory {name}, and a hub id needs pip install huggingface_hub"
        ) from None
    wanted = list(FILES)
    try:
        path = Path(snapshot_download(name, allow_patterns=wanted, local_files_only=True))
        if any((path / file).is_file() for file in FILES):
            return path
    except (OSError, ValueError):  # not in the cache
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # the hub's own errors, httpx's, offline mode's
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise SettingsError(
            f"--tokenizer: {name} is no directory and cannot be fetched from the hub ({reason});"
            " copy its tokenizer files into a directory and name that"
        ) from error
