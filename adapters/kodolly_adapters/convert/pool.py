"""Shards on this machine: a process a core, or in this very process when one job is asked for."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

from kodolly_adapters.errors import EngineError, InputError, UserError

from .children import without_interrupts
from .options import Options
from .part import Done, save
from .reading.records import Shard
from .shard import convert_shard
from .taking import filled

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them
AHEAD = 2  # shards waiting a process: enough to keep it busy, few enough to keep memory flat


def run(
    shards: Iterator[Shard],
    options: Options,
    folder: Path,
    report: Callable[[Done], None],
    jobs: int,
) -> None:
    """Convert every shard into a part in `folder`, telling `report` of each as it is finished."""
    if jobs == 1:
        with _no_collector():
            for shard in shards:
                report(work(shard, options, folder))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_quiet) as pool:
        waiting: set[Future[Done]] = set()
        try:
            for shard in shards:
                with without_interrupts():
                    waiting.add(pool.submit(work, shard, options, folder))
                if len(waiting) >= jobs * AHEAD:
                    waiting = _collect(waiting, report)
            while waiting:
                waiting = _collect(waiting, report)
        except BrokenProcessPool as error:
            raise EngineError(
                "a worker process died (out of memory?). Run the same command again to go on; "
                "--jobs lowers the memory needed"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def work(shard: Shard, options: Options, folder: Path) -> Done:
    """One task: convert, write the part, return its mark."""
    try:
        part = convert_shard(filled(shard), options)
    except (UserError, OSError):
        raise
    except Exception as error:  # whatever it is, it must not lose the file's name
        reason = f"cannot be converted, which is a fault of ours: {error!r}"
        raise InputError(shard.file, reason, shard.offset) from error
    save(part, folder, shard.key)
    return part.done


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _collect(waiting: set[Future[Done]], report: Callable[[Done], None]) -> set[Future[Done]]:
    finished, left = wait(waiting, return_when=FIRST_COMPLETED)
    for future in finished:
        report(future.result())
    return left


@contextmanager
def _no_collector() -> Iterator[None]:
    """Rows make no cycles; looking for some takes a tenth of the time. Nor is freed memory given back."""
    gc.disable()
    _keep_memory()
    try:
        yield
    finally:
        gc.enable()
        _give_back_memory()


def _quiet() -> None:
    gc.disable()
    _keep_memory()


def _give_back_memory() -> None:
    """What comes after the shards needs other memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _keep_memory() -> None:
    """Have freed pieces used again instead of given back: asking the system for them anew takes a tenth of the time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 32 << 20)  # the largest glibc takes
        mallopt(_TRIM_THRESHOLD, 16 << 20)
