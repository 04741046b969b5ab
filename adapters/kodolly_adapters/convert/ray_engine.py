"""Shards beyond one machine: the same pure function, driven by Ray Data.

Parts are written where the run's folder is: a file system all nodes share, or one node.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from kodolly_adapters.errors import EngineError, UserError

from .options import Options
from .part import Done
from .pool import work
from .reading.records import Shard
from .taking import filled

BATCH = 16  # shards given to Ray at once: what bounds the memory of its object store


def run(
    shards: Iterator[Shard],
    options: Options,
    folder: Path,
    report: Callable[[Done], None],
    jobs: int,
) -> None:
    """Convert every shard into a part in `folder`, telling `report` of each batch as it is finished.

    A cluster is joined when RAY_ADDRESS names one, else `jobs` cores of this machine are used.
    Raises EngineError when Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise EngineError("--engine ray needs Ray: pip install 'kodolly[ray]'") from None
    own = not ray.is_initialized()
    if own:
        _start(ray, jobs)
    try:
        while batch := list(islice(shards, BATCH)):
            _convert(ray, batch, partial(_task, options=options, folder=folder.resolve()), report)
    finally:
        if own:
            ray.shutdown()


def _start(ray: Any, jobs: int) -> None:
    where = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": jobs, "include_dashboard": False}
    ray.init(log_to_driver=False, configure_logging=False, **where)
    ray.data.DataContext.get_current().enable_progress_bars = False


def _convert(
    ray: Any,
    batch: list[Shard],
    task: Callable[[dict[str, Any]], dict[str, Any]],
    report: Callable[[Done], None],
) -> None:
    # Bytes, not places: a node need not see the input.
    items = [{"shard": msgspec.msgpack.encode(filled(shard))} for shard in batch]
    results = ray.data.from_items(items, override_num_blocks=len(items)).map(task).take_all()
    for result in results:
        if error := result["error"]:
            raise _raised(error)
        report(msgspec.msgpack.decode(result["done"], type=Done))


def _task(item: dict[str, Any], *, options: Options, folder: Path) -> dict[str, Any]:
    """One shard on whichever node; errors of ours travel as data, since Ray wraps what it raises."""
    try:
        done = work(msgspec.msgpack.decode(item["shard"], type=Shard), options, folder)
    except UserError as error:
        return {"done": b"", "error": pickle.dumps(error)}
    return {"done": msgspec.msgpack.encode(done), "error": b""}


def _raised(data: bytes) -> UserError:
    """The error a task met."""
    error = pickle.loads(data)
    return error if isinstance(error, UserError) else EngineError(str(error))
