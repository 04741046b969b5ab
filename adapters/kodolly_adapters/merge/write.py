"""The bytes: one output file after the other, each under a temporary name until it is whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from kodolly_adapters.errors import OutputError
from kodolly_adapters.safetensors_io import DTYPES, INDEX, Reader, Tensor

from .arithmetic import Loss, Rows, loss, one_thread, pieces, rounded
from .plan import Output, Plan, Shard
from .staging import Staging

COPY = 16 << 20  # bytes copied at once
# Where the kernel cannot copy between two files by itself.
NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF)


def write(plan: Plan, staging: Staging, progress: Callable[[int], None]) -> Loss:
    """Write every file that is not there yet, and the index; `progress` hears of bytes.

    Raises OutputError naming the file, and AdapterError where values do not fit the dtype.
    """
    with one_thread(), Reader() as reader:
        for shard in plan.shards:
            size = len(shard.header()[0]) + shard.size
            if staging.done(shard.file, size):
                progress(shard.size)
                continue
            path = staging.place / shard.file
            try:
                found = _write_shard(shard, path, reader, progress)
            except OSError as error:
                raise OutputError(f"{path}: {error}. The same command goes on from here") from None
            staging.finished(shard.file, size, found)
    _write_index(plan, staging)
    return staging.loss()


def _write_index(plan: Plan, staging: Staging) -> None:
    from .staging import write_json

    if not plan.base.indexed:
        return
    places = {part.name: shard.file for shard in plan.shards for part in shard.parts()}
    write_json(
        staging.place / INDEX,
        {"metadata": {"total_size": plan.size}, "weight_map": dict(sorted(places.items()))},
    )


def _write_shard(shard: Shard, path: Path, reader: Reader, progress: Callable[[int], None]) -> Loss:
    head, places = shard.header()
    part = path.with_name(f"{path.name}.part")
    total = Loss()
    file = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        put(file, head, 0)
        for output in shard.outputs:
            if output.is_copy:
                _copy(output.source, reader, file, places[output.name], progress)
            else:
                total.add(_merge(output, reader, file, places, progress))
        os.fsync(file)
    finally:
        os.close(file)
    part.chmod(0o644)
    part.replace(path)
    return total


def _merge(
    output: Output,
    reader: Reader,
    file: int,
    places: dict[str, int],
    progress: Callable[[int], None],
) -> Loss:
    """Write one changed, cast or quantised tensor."""
    import torch

    rows = Rows(output, reader)
    total = Loss()
    if output.form != "none":
        from .export import Packer

        packer = Packer(output)
        for first, last in pieces(output.rows, output.width):
            exact, _ = rows.exact(first, last)
            for name, row_bytes, block in packer.pack(exact, first):
                put(file, memoryview(block), places[name] + first * row_bytes)
            progress((last - first) * packer.row_bytes)
        for name, block in packer.rest():
            put(file, memoryview(block), places[name])
        return total
    row_bytes = output.width * DTYPES[output.dtype][1]
    for first, last in pieces(output.rows, output.width):
        exact, start = rows.exact(first, last)
        result = rounded(exact, output.dtype, output.name)
        block = result.view(torch.uint8).flatten().numpy()
        put(file, memoryview(block), places[output.name] + first * row_bytes)
        if rows.computes:
            total.add(loss(exact, start, result))
        progress((last - first) * row_bytes)
    return total


def _copy(
    source: Tensor, reader: Reader, file: int, place: int, progress: Callable[[int], None]
) -> None:
    """Copy a tensor's bytes as they are, within the kernel where it can."""
    done, by_kernel = 0, True
    origin = reader.file(source.path)
    while done < source.size:
        want = min(COPY, source.size - done)
        got = 0
        if by_kernel:
            try:
                got = os.copy_file_range(origin, file, want, source.start + done, place + done)
            except OSError as error:
                if error.errno not in NO_KERNEL_COPY:
                    raise
                by_kernel = False
        if not got:
            block = os.pread(origin, min(want, 1 << 20), source.start + done)
            if not block:
                raise OSError(f"{source.path}: ended while {source.name} was read")
            put(file, block, place + done)
            got = len(block)
        done += got
        progress(got)


def put(file: int, block: bytes | memoryview, place: int) -> None:
    """Write all of `block` at `place`, a byte offset in the file."""
    view = memoryview(block)
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written
