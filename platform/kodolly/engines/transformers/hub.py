"""A model by its name on the Hugging Face hub: downloaded once, then read from the hub's own cache."""

from __future__ import annotations

import logging
from pathlib import Path

from kodolly.errors import EngineStartError

log = logging.getLogger(__name__)

FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"]
OLDER_WEIGHTS = ["*.bin"]  # for models that have no safetensors


def is_hub_id(model: str) -> bool:
    """Whether `model` reads as a name on the hub, and no folder here has that name."""
    is_path = model.startswith((".", "/", "~")) or model.count("/") != 1
    return not is_path and not Path(model).is_dir()


def model_directory(model: str) -> Path:
    """The directory of `model`: itself, or for a hub id (ORGANISATION/NAME) the one it was downloaded to.

    Raises EngineStartError when a hub id is not in the cache and cannot be downloaded.
    """
    if not is_hub_id(model):
        return Path(model)
    from huggingface_hub import snapshot_download

    log.info("taking %s from the hub, or from its cache", model)
    try:
        directory = Path(snapshot_download(model, allow_patterns=FILES))
        if not any(directory.glob("*.safetensors")):
            snapshot_download(model, allow_patterns=OLDER_WEIGHTS)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineStartError(
            f"{model}: no such directory, nor can it be downloaded: {reason}"
        ) from error
    return directory
