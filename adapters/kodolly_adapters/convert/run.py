"""One conversion from beginning to end: plan, convert, resolve, write, describe."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

import msgspec

from kodolly_adapters.errors import EngineError, UserError

from . import pool as local
from . import ray_engine
from .cleaning.rules import modes_of
from .dedupe import resolve
from .describe import Parts, drawing, summarise
from .options import Options
from .output.dataset_card import write_card
from .output.summary import Summary, plain_options, write_summary
from .output.writers import write
from .part import Done, done
from .progress import Progress
from .reading.plan import Plan
from .reading.records import Shard
from .reading.source import Source
from .run_folder import finish, workplace

Engine = Literal["local", "ray"]


def convert(
    arguments: Sequence[str],
    out: Path,
    options: Options | None = None,
    *,
    source: Source | None = None,
    jobs: int | None = None,
    engine: Engine = "local",
    restart: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Convert every file behind `arguments` into the folder `out`, and say what became of it.

    A run that was killed is continued: shards whose bytes are the same are not converted again.
    Raises UserError; nothing but the folder's `.work` has changed then.
    """
    options = options or Options()
    jobs = jobs or local.cores()
    progress = progress or Progress(arguments, show=False)
    modes_of(options.rules)
    settings = [_version(), plain_options(options), str(options.tokenizer), source and source.name]
    with workplace(out, arguments, settings, restart=restart, force=force) as work, progress:
        plan = Plan(arguments, source)
        folder = work / "parts"
        parts = _convert_all(plan, folder, options, jobs, engine, progress)
        modes = {i.source.name: modes_of(options.rules, i.source.rules) for i in plan.inputs}
        progress.stage("looking for duplicates")
        with drawing(jobs) as begin:
            resolved = resolve(folder, parts, modes, options)
            progress.stage("writing")
            fresh = work / "out"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            found = Parts(folder, parts, resolved, modes)
            summary = summarise(plan, found, options, _version())
            drawn = begin(summary, fresh)
            splits, rejected = write(parts, folder, fresh, resolved, options)
            names = drawn()
        summary = msgspec.structs.replace(summary, splits=tuple(splits), rejected=rejected)
        if lost := summary.reconciles():
            raise UserError(f"the counts do not add up, which is a fault of ours: {lost[0]}")
        write_summary(summary, fresh)
        write_card(summary, fresh, names)
        finish(work, fresh)
        progress.finished(summary)
    return summary


def _convert_all(
    plan: Plan, folder: Path, options: Options, jobs: int, engine: Engine, progress: Progress
) -> list[tuple[str, Done]]:
    """A part in `folder` for every shard of the plan; their marks in the shards' order."""
    keys: list[str] = []

    def missing() -> Generator[Shard, None, None]:
        with closing(plan.shards(progress.read)) as planned:
            for shard in planned:
                keys.append(shard.key)
                known = done(folder, shard.key)
                same = (shard.file, shard.source, shard.identity)
                if known and (known.file, known.source, known.made_of) == same:
                    progress.part(known)
                else:
                    yield shard

    run = ray_engine.run if engine == "ray" else local.run
    # A shard that fails leaves the others unasked for: their file and its hashing thread end here, not in the
    # garbage collector, which may run in the start of a thread, where waiting for another's end hangs for ever.
    with closing(missing()) as shards:
        run(shards, options, folder, progress.part, jobs)
    parts = []
    for key in keys:
        mark = done(folder, key)
        if mark is None:
            raise EngineError(f"part {key} is not in {folder}: do all workers share that folder?")
        parts.append((key, mark))
    return parts


def _version() -> str:
    return importlib.metadata.version("kodolly")
