"""One conversion from beginning to end: plan, convert, resolve, write, describe."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec
import numpy as np

from kodolly_adapters.errors import EngineError, UserError
from kodolly_adapters.terminal import Progress

from . import pool
from .cleaning.rules import OFF, modes_of
from .dedupe import PERMUTATIONS, resolve
from .options import Options
from .output import pictures
from .output.dataset_card import write_card
from .output.describe import PartRows, Results, summarise
from .output.summary import Summary, plain_options, write_summary
from .output.writers import write
from .part import INDEX, Mark, read, read_mark
from .pool import Engine
from .reading.plan import Plan
from .reading.records import Shard
from .reading.source import Source
from .run_folder import finish, run_folder
from .sources import SOURCES


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

    `jobs` processes work, one a core unless told; with one it is this very process, of which nothing is
    changed. A run that was killed is continued: shards whose bytes are the same are not converted again.
    Raises UserError; nothing but the folder's `.work` has changed then.
    """
    options = options or Options()
    modes_of(options.rules)
    version = importlib.metadata.version("kodolly")
    settings = [version, plain_options(options), str(options.tokenizer), source and source.name]
    progress = progress or Progress("convert", show=False)
    with run_folder(out, arguments, settings, restart=restart, force=force) as work, progress:
        plan = Plan(arguments, SOURCES, source)
        sizes = [member.size for member in plan.members]
        progress.total = None if None in sizes else sum(filter(None, sizes))
        folder = work / "parts"
        parts = _convert_all(plan, folder, options, jobs or pool.cores(), engine, progress)
        progress.note("looking for duplicates")
        results = _resolve(plan, folder, parts, options)
        fresh = work / "out"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        progress.note("writing")
        summary = summarise(plan, results, options, version)
        splits, rejected = write(
            parts, folder, fresh, results.index, results.outcomes.codes, options
        )
        summary = msgspec.structs.replace(summary, splits=tuple(splits), rejected=rejected)
        if lost := summary.reconciles():
            raise UserError(f"the counts do not add up, which is a fault of ours: {lost[0]}")
        write_summary(summary, fresh)
        write_card(summary, fresh, pictures.draw(summary, fresh))
        finish(work, fresh)
        _report(summary, progress)
    return summary


def _convert_all(
    plan: Plan, folder: Path, options: Options, jobs: int, engine: Engine, progress: Progress
) -> list[tuple[str, Mark]]:
    """A part in `folder` for every shard of the plan; their marks in the shards' order."""
    marks: dict[str, Mark | None] = {}
    rows = 0

    def report(mark: Mark) -> None:
        nonlocal rows
        rows += mark.counts.rows
        progress.note(f"{rows:,} rows")

    def missing() -> Generator[tuple[Shard, Source], None, None]:
        with closing(plan.shards(progress.add)) as planned:
            for shard, source in planned:
                mark = read_mark(folder, shard.key)
                same = (shard.file, shard.source, shard.identity)
                if mark and (mark.file, mark.source, mark.identity) == same:
                    marks[shard.key] = mark
                    report(mark)
                else:
                    marks[shard.key] = None
                    yield shard, source

    with closing(missing()) as shards:  # a shard that fails ends the reading of its file here
        pool.run(shards, options, folder, report, jobs=jobs, engine=engine)
    parts = []
    for key, known in marks.items():
        mark = known or read_mark(folder, key)
        if mark is None:
            raise EngineError(f"part {key} is not in {folder}: do all workers share that folder?")
        parts.append((key, mark))
    return parts


def _resolve(
    plan: Plan, folder: Path, parts: Sequence[tuple[str, Mark]], options: Options
) -> Results:
    """The index and the outcome of all rows."""
    borders = [0, *accumulate(mark.counts.rows for _, mark in parts)]
    placed = [
        PartRows(key, mark, slice(*border))
        for (key, mark), border in zip(parts, pairwise(borders), strict=True)
    ]
    index = np.empty(borders[-1], INDEX)
    sources = {one.source.name: one.source for one in plan.inputs}
    modes = {name: modes_of(options.rules, source.rules) for name, source in sources.items()}
    numbers = {name: number for number, name in enumerate(modes)}
    source_of = np.empty(borders[-1], np.uint8)
    near = [name for name, mode in modes.items() if mode["near-duplicate"] != OFF]
    signatures = np.zeros((borders[-1], PERMUTATIONS), np.uint32) if near else None
    for key, mark, rows in placed:
        index[rows] = np.frombuffer(read(folder, key, "index"), INDEX)
        source_of[rows] = numbers[mark.source]
        if signatures is not None and mark.source in near:
            flat = np.frombuffer(read(folder, key, "signatures"), np.uint32)
            signatures[rows] = flat.reshape(-1, PERMUTATIONS)
    outcomes = resolve(index, source_of, list(modes.values()), options.near_threshold, signatures)
    return Results(folder, placed, index, outcomes, modes)


def _report(summary: Summary, progress: Progress) -> None:
    """The last line: what there is now."""
    rows = sum(split.rows for split in summary.splits)
    seconds = progress.seconds
    progress.say(
        f"{rows:,} rows, {summary.rejected:,} rejected, in {seconds:,.1f} s "
        f"({rows / seconds:,.0f} rows/s, {progress.done / 1e6 / seconds:,.0f} MB/s)"
    )
