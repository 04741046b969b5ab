"""Names, types and shapes of the tensors in safetensors files, without reading their data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from kodolly.errors import SettingsError

INDEX = "model.safetensors.index.json"
MAX_HEADER = 100 * 10**6  # bytes; the format's own limit


class TensorInfo(NamedTuple):
    """A tensor's type, by safetensors' name for it (such as F16), and its shape."""

    dtype: str
    shape: tuple[int, ...]


def tensors_of(file: Path) -> dict[str, TensorInfo]:
    """Tensor name -> info, for one file. Raises SettingsError for a file that cannot be read.

    The format: eight bytes with the header's length (little-endian), the header (a JSON object),
    then the data.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise ValueError("cut short, or no safetensors file")
            header = json.loads(stream.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {n: TensorInfo(e["dtype"], tuple(e["shape"])) for n, e in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise SettingsError(f"{file} is no safetensors file: nested too deeply") from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise SettingsError(f"{file} is no safetensors file: {error}") from error
    if size != 8 + length + end:
        raise SettingsError(f"{file} has {size} bytes where its header tells {8 + length + end}")
    return tensors


def model_tensors(directory: Path) -> dict[str, TensorInfo]:
    """Tensor name -> info, for all shards of a model directory; {} if it has no safetensors."""
    index = directory / INDEX
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            files = [directory / name for name in sorted(names)]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SettingsError(f"{index} cannot be read: {error!r}") from error
    else:
        files = sorted(directory.glob("model*.safetensors"))
    return {name: info for file in files for name, info in tensors_of(file).items()}
