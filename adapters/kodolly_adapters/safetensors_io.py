"""Reads safetensors files piece by piece: the header says where every tensor is, and rows are read from there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kodolly_adapters.errors import BaseError, InputError
from kodolly_adapters.files import read_json

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_HEADER = 100_000_000  # bytes; the format's own limit

# safetensors' name of a dtype -> (torch's name, bytes)
DTYPES = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor in a safetensors file. `start` is its first byte in the file; `size` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size: int

    @property
    def rows(self) -> int:
        """Length of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def width(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape[1:])


def header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by name, metadata) of a safetensors file. Raises InputError naming what is wrong with it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise InputError(str(path), "no safetensors file, or cut short")
            entries = json.loads(file.read(length))
        metadata = entries.pop("__metadata__", {})
        tensors = {name: _tensor(name, entry, path, 8 + length) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(str(path), f"the safetensors header cannot be read: {error}") from None
    for tensor in tensors.values():
        if tensor.start + tensor.size > size:
            reason = f"cut short: {tensor.name} ends after the file's last byte"
            raise InputError(str(path), reason)
    return tensors, metadata


def new_header(
    path: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[Tensor]]:
    """The header of a new file as bytes, and its tensors in the order in which to write them after it.

    `tensors` are (name, dtype, shape). Wide dtypes come first, so that all are aligned. Nothing is written.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    start = 0
    for name, dtype, shape in sorted(tensors, key=lambda tensor: -DTYPES[tensor[1]][1]):
        end = start + math.prod(shape) * DTYPES[dtype][1]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    del entries["__metadata__"]
    return head, [_tensor(name, entry, path, len(head)) for name, entry in entries.items()]


def _tensor(name: str, entry: Mapping[str, Any], path: Path, data: int) -> Tensor:
    first, last = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{name} has the unknown dtype {entry['dtype']}")
    if last - first != math.prod(shape) * DTYPES[entry["dtype"]][1] or first < 0:
        raise ValueError(f"{name}: its bytes do not fit its shape")
    return Tensor(name, entry["dtype"], shape, path, data + first, last - first)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model directory's weights: the tensors by name, and the names of the files, sorted."""

    directory: Path
    files: tuple[str, ...]
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def indexed(self) -> bool:
        """Whether the weights have an index file."""
        return (self.directory / INDEX).is_file()


def checkpoint(directory: Path) -> Checkpoint:
    """The weights in `directory`, one file or sharded.

    Raises BaseError saying what to do where there are none, InputError for a file that cannot be read.
    """
    if (directory / INDEX).is_file():
        return _sharded(directory)
    if (directory / SINGLE).is_file():
        return Checkpoint(directory, (SINGLE,), *header(directory / SINGLE))
    if any(directory.glob("*.bin")):
        raise BaseError(
            f"{directory}: holds *.bin weights, which can run code when read. Save the model as "
            "safetensors first (save_pretrained of a current transformers does)"
        )
    raise BaseError(f"{directory}: holds neither {SINGLE} nor {INDEX}")


def _sharded(directory: Path) -> Checkpoint:
    index = str(directory / INDEX)
    files_by_name = (read_json(directory / INDEX) or {}).get("weight_map")
    if not isinstance(files_by_name, dict):
        raise InputError(index, "not a JSON object with a weight_map")
    files = tuple(sorted(set(files_by_name.values())))
    for name in files:
        if Path(name).name != name or not (directory / name).is_file():
            raise InputError(index, f"names {name}, which is not there")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for name in files:
        in_file, metadata = header(directory / name)
        tensors |= {
            key: tensor for key, tensor in in_file.items() if files_by_name.get(key) == name
        }
    if missing := sorted(set(files_by_name) - set(tensors)):
        raise InputError(index, f"{missing[0]} is in no file ({len(missing)} such)")
    return Checkpoint(directory, files, tensors, metadata)


class Reader(ExitStack):
    """Reads rows of tensors from their files, into one buffer; the files stay open until its `with` block ends."""

    def __init__(self) -> None:
        super().__init__()
        self._files: dict[Path, BufferedReader] = {}
        self._buffer = bytearray()

    def rows(self, tensor: Tensor, first: int = 0, last: int | None = None) -> torch.Tensor:
        """Rows [first, last) as a tensor of shape (last - first, width) in the file's dtype.

        Its memory is the reader's buffer, which the next call overwrites. Raises OSError.
        """
        import torch

        last = tensor.rows if last is None else last
        name, itemsize = DTYPES[tensor.dtype]
        dtype = getattr(torch, name)
        stride = tensor.width * itemsize
        size = (last - first) * stride
        if not size:
            return torch.empty((last - first, tensor.width), dtype=dtype)
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        if tensor.path not in self._files:
            self._files[tensor.path] = self.enter_context(tensor.path.open("rb"))
        file, view = self._files[tensor.path], memoryview(self._buffer)[:size]
        file.seek(tensor.start + first * stride)
        if file.readinto(view) < size:
            raise OSError(f"{tensor.path}: ended while {tensor.name} was read")
        return torch.frombuffer(view, dtype=dtype).view(last - first, tensor.width)

    def whole(self, tensor: Tensor) -> torch.Tensor:
        """A small tensor as a whole, in float32 and its own shape; a copy, which no later call overwrites."""
        import torch

        rows = self.rows(tensor)
        return rows.to(torch.float32, copy=True).view(tensor.shape)


def equal(first: Tensor | None, second: Tensor | None) -> bool:
    """Do two tensors have the same dtype, shape and bytes, or are both None? They are read piece by piece."""
    import torch

    if first is None or second is None:
        return first is second
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    step = max(1, (1 << 20) // max(1, first.width))  # rows
    with Reader() as one, Reader() as other:
        for row in range(0, first.rows, step):
            last = min(row + step, first.rows)
            left, right = one.rows(first, row, last), other.rows(second, row, last)
            if not torch.equal(left.view(torch.uint8), right.view(torch.uint8)):
                return False
    return True
