"""Converts all shards into parts: in this process, in one process per core, or on a Ray cluster.

All of them call `work`. On a Ray cluster of several nodes, the run's folder must be on a file system that all
nodes share.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Literal

from kodolly_adapters.errors import EngineError, InputError, UserError

from .options import Options
from .part import Mark, save
from .reading.records import Shard
from .reading.source import Source
from .shard import convert_shard

Engine = Literal["local", "ray"]
Result = Mark | UserError | OSError
Submit = Callable[[Shard, Source], Future[Result]]

SHARDS_PER_PROCESS = 2  # in work or waiting: enough to keep it busy, few enough for little memory


def run(
    shards: Iterator[tuple[Shard, Source]],
    options: Options,
    folder: Path,
    report: Callable[[Mark], None],
    *,
    jobs: int,
    engine: Engine = "local",
) -> None:
    """Convert every shard into a part in `folder`, and call `report` with each finished part's mark.

    Raises the UserError or OSError of a shard, and EngineError when a process died or Ray is not installed.
    """

    def collect(results: Iterable[Result]) -> None:
        for result in results:
            if isinstance(result, Exception):
                raise result
            report(result)

    if engine == "local" and jobs == 1:
        collect(work(shard, source, options, folder) for shard, source in shards)
        return
    first = next(shards, None)  # looks at the input before workers are started, which is slow
    if first is None:
        return
    workers = _ray(options, folder, jobs) if engine == "ray" else _processes(options, folder, jobs)
    with workers as (submit, limit):
        tasks: set[Future[Result]] = set()
        for shard, source in chain([first], shards):
            tasks.add(submit(shard, source))
            if len(tasks) >= limit:
                finished, tasks = wait(tasks, return_when=FIRST_COMPLETED)
                collect(future.result() for future in finished)
        collect(future.result() for future in as_completed(tasks))


def work(shard: Shard, source: Source, options: Options, folder: Path) -> Result:
    """Convert one shard, write the part and return its mark.

    Errors that the user should read are returned, since Ray would raise them wrapped in an error of its own.
    """
    try:
        part = convert_shard(shard, source, options)
        save(part, folder / f"{shard.key}.part")
    except (UserError, OSError) as error:
        return error
    except Exception as error:  # noqa: BLE001 - a bug, for which the file should be named
        reason = f"cannot be converted, which is a bug in kodolly: {error!r}"
        return InputError(shard.file, reason, shard.offset)
    return part.mark


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _processes(options: Options, folder: Path, jobs: int) -> Iterator[tuple[Submit, int]]:
    """Processes of this machine, and how many shards they may have at once.

    They run without Python's cycle collector: rows have no cycles, and the search takes a tenth of the time.
    """
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), gc.disable) as pool:

        def submit(shard: Shard, source: Source) -> Future[Result]:
            with _without_interrupts():
                return pool.submit(work, shard, source, options, folder)

        try:
            yield submit, jobs * SHARDS_PER_PROCESS
        except BrokenProcessPool as error:
            raise EngineError(
                "a worker process died (out of memory?). Run the same command again to go on; "
                "--jobs lowers the memory needed"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that the body starts ignore Ctrl-C, which the terminal sends to the whole group; we handle it.

    They inherit the blocked SIGINT. If each blocked it itself, a Ctrl-C during its imports would still print a
    traceback. Only this thread's mask is changed, so other threads of this process can still get the signal.
    """
    resource_tracker.ensure_running()  # started inside the block, it would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _ray(options: Options, folder: Path, jobs: int) -> Iterator[tuple[Submit, int]]:
    """A Ray cluster (that of RAY_ADDRESS, else `jobs` cores of this machine), and how many shards it may have
    at once, which bounds the memory of its object store."""
    try:
        import ray
    except ImportError:
        raise EngineError("--engine ray needs Ray: pip install 'kodolly[ray]'") from None
    is_ours = not ray.is_initialized()
    if is_ours:
        local: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False}
        settings = {} if os.environ.get("RAY_ADDRESS") else local
        ray.init(log_to_driver=False, configure_logging=False, **settings)
    task = ray.remote(work)
    path = folder.resolve()
    try:
        limit = SHARDS_PER_PROCESS * int(ray.cluster_resources().get("CPU", jobs))
        yield lambda shard, source: task.remote(shard, source, options, path).future(), limit
    finally:
        if is_ours:
            ray.shutdown()
