"""BASE and ADAPTER as people write them: a folder, a training run's folder, or a hub name."""

from __future__ import annotations

from pathlib import Path

from kodolly_adapters.errors import AdapterError, BaseError

from .settings import CONFIG

WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "LICENSE*"]


def base_directory(name: str) -> Path:
    """The folder of a base; a hub name is taken from the cache, or fetched. Raises BaseError."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise BaseError(f"{name}: there is no such directory")
    return Path(_fetch(name))


def _fetch(name: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, allow_patterns=WANTED, local_files_only=True))
    except Exception:  # noqa: BLE001, S110 - not in the cache; its kinds of error change
        pass
    try:
        return str(snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:  # noqa: BLE001 - as above
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BaseError(f"{name}: no such directory, and it cannot be fetched: {first}") from None


def adapter_directory(name: str) -> Path:
    """The folder with the adapter's config: ADAPTER itself, or adapter/ of a training run's folder."""
    path = Path(name)
    if not path.is_dir():
        raise AdapterError(f"{name}: there is no such directory")
    if not (path / CONFIG).is_file() and (path / "adapter" / CONFIG).is_file():
        return path / "adapter"
    return path
