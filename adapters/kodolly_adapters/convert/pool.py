"""Shards to parts by whoever works: this process, a process a core, or a Ray cluster.

All drive the same pure function. With Ray, parts are written where the run's folder is: a file system all
nodes share, or one node.
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

AHEAD = 2  # shards waiting a process: enough to keep it busy, few enough to keep memory flat


def run(
    shards: Iterator[tuple[Shard, Source]],
    options: Options,
    folder: Path,
    report: Callable[[Mark], None],
    *,
    jobs: int,
    engine: Engine = "local",
) -> None:
    """Convert every shard into a part in `folder`, and `report` each as it is finished.

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
    workers = _ray(options, folder, jobs) if engine == "ray" else _processes(options, folder, jobs)
    with workers as (submit, ahead):
        waiting: set[Future[Result]] = set()
        for shard, source in shards:
            waiting.add(submit(shard, source))
            if len(waiting) >= ahead:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                collect(future.result() for future in finished)
        collect(future.result() for future in as_completed(waiting))


def work(shard: Shard, source: Source, options: Options, folder: Path) -> Result:
    """One task: convert, write the part, return its mark.

    Errors meant for people are returned, since not every engine raises them as they are.
    """
    try:
        part = convert_shard(shard, source, options)
        save(part, folder / f"{shard.key}.part")
    except (UserError, OSError) as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever it is, the file is named
        reason = f"cannot be converted, which is a fault of ours: {error!r}"
        return InputError(shard.file, reason, shard.offset)
    return part.mark


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _processes(options: Options, folder: Path, jobs: int) -> Iterator[tuple[Submit, int]]:
    """Processes of this machine, and how many shards they may have at once.

    Rows make no cycles, so Python need not look for any in them: that would take a tenth of their time.
    """
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), gc.disable) as pool:

        def submit(shard: Shard, source: Source) -> Future[Result]:
            with _without_interrupts():
                return pool.submit(work, shard, source, options, folder)

        try:
            yield submit, jobs * AHEAD
        except BrokenProcessPool as error:
            raise EngineError(
                "a worker process died (out of memory?). Run the same command again to go on; "
                "--jobs lowers the memory needed"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started by the body never get SIGINT: Ctrl-C reaches a whole group, and is its parent's to handle.

    A child that sets this itself has imported its modules first, and an interrupt meanwhile shows as its
    traceback. The mask is this thread's alone: this process itself loses none.
    """
    resource_tracker.ensure_running()  # or the first process would start it, and it unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _ray(options: Options, folder: Path, jobs: int) -> Iterator[tuple[Submit, int]]:
    """A Ray cluster, the one that RAY_ADDRESS names, else `jobs` cores of this machine; and how many shards
    it may have at once, which bounds the memory of its object store."""
    try:
        import ray
    except ImportError:
        raise EngineError("--engine ray needs Ray: pip install 'kodolly[ray]'") from None
    own = not ray.is_initialized()
    if own:
        here: dict[str, Any] = {"num_cpus": jobs, "include_dashboard": False}
        where = {} if os.environ.get("RAY_ADDRESS") else here
        ray.init(log_to_driver=False, configure_logging=False, **where)
    task = ray.remote(work)
    place = folder.resolve()
    try:
        ahead = AHEAD * int(ray.cluster_resources().get("CPU", jobs))
        yield lambda shard, source: task.remote(shard, source, options, place).future(), ahead
    finally:
        if own:
            ray.shutdown()
