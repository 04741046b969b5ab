"""One conversion from beginning to end: plan, convert, resolve, write, describe."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np

from kodolly_adapters.errors import EngineError, UserError
from kodolly_adapters.terminal import Progress

from . import pool
from .cleaning.rules import OFF, modes_of
from .dedupe import PERMUTATIONS, resolve
from .options import Options, plain_options
from .output.dataset_card import card
from .output.summary import Results, Summary, summarise, write_summary
from .output.writers import write
from .part import INDEX, Mark, StoredPart, read_mark
from .reading.plan import Plan
from .reading.records import Shard
from .reading.source import Source
from .run_folder import finish, run_folder
from .schema import CARD_FILE
from .sources import SOURCES


def convert(
    arguments: Sequence[str],
    out: Path,
    options: Options | None = None,
    *,
    source: Source | None = None,
    jobs: int | None = None,
    engine: pool.Engine = "local",
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
    settings = {
        "version": version,
        "index": str(INDEX),  # parts of another layout cannot be read
        "options": plain_options(options),
        "tokenizer": str(options.tokenizer),
        "source": source.name if source else None,
    }
    progress = progress or Progress("convert", show=False)
    with run_folder(out, arguments, settings, restart=restart, force=force) as work, progress:
        plan = Plan(arguments, SOURCES, source)
        sizes = [member.size for member in plan.members]
        progress.total = None if None in sizes else sum(filter(None, sizes))
        parts = _convert_all(plan, work / "parts", options, jobs or pool.cores(), engine, progress)
        progress.note("looking for duplicates")
        results = _resolve(plan, parts, options)
        fresh = work / "out"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        progress.note("writing")
        summary = summarise(plan, results, options, version)
        splits, rejected = write(results, fresh, options)
        summary = msgspec.structs.replace(summary, splits=tuple(splits), rejected=rejected)
        if lost := summary.reconciles():
            raise UserError(f"the counts do not add up, which is a fault of ours: {lost[0]}")
        write_summary(summary, fresh)
        from .output import pictures  # here, as matplotlib takes long to import

        (fresh / CARD_FILE).write_bytes(card(summary, pictures.draw(summary, fresh)).encode())
        finish(work, fresh)
        rows, seconds = sum(split.rows for split in summary.splits), progress.seconds
        progress.say(
            f"{rows:,} rows, {summary.rejected:,} rejected, in {seconds:,.1f} s "
            f"({rows / seconds:,.0f} rows/s, {progress.done / 1e6 / seconds:,.0f} MB/s)"
        )
    return summary


def _convert_all(
    plan: Plan, folder: Path, options: Options, jobs: int, engine: pool.Engine, progress: Progress
) -> list[StoredPart]:
    """A part in `folder` for every shard of the plan, in the shards' order."""
    paths: list[Path] = []
    rows = 0

    def report(mark: Mark) -> None:
        nonlocal rows
        rows += mark.counts.rows
        progress.note(f"{rows:,} rows")

    def missing() -> Generator[tuple[Shard, Source], None, None]:
        with closing(plan.shards(progress.add)) as planned:
            for shard, source in planned:
                paths.append(folder / f"{shard.key}.part")
                mark = read_mark(paths[-1])
                same = (shard.file, shard.source, shard.identity)
                if mark and (mark.file, mark.source, mark.identity) == same:
                    report(mark)
                else:
                    yield shard, source

    with closing(missing()) as shards:  # a shard that fails ends the reading of its file here
        pool.run(shards, options, folder, report, jobs=jobs, engine=engine)
    parts: list[StoredPart] = []
    start = 0
    for path in paths:
        mark = read_mark(path)
        if mark is None:
            raise EngineError(f"{path.name} is not in {folder}: do all workers share that folder?")
        parts.append(StoredPart(path, mark, slice(start, start + mark.counts.rows)))
        start += mark.counts.rows
    return parts


def _resolve(plan: Plan, parts: Sequence[StoredPart], options: Options) -> Results:
    """The index and the outcome of all rows."""
    total = parts[-1].rows.stop if parts else 0
    rules = {one.source.name: one.source.rules for one in plan.inputs}
    modes = {name: modes_of(options.rules, own) for name, own in rules.items()}
    numbers = {name: number for number, name in enumerate(modes)}
    near = [name for name, mode in modes.items() if mode["near-duplicate"] != OFF]
    index, source_of = np.empty(total, INDEX), np.empty(total, np.uint8)
    signatures = np.zeros((total, PERMUTATIONS), np.uint32) if near else None
    for part in parts:
        index[part.rows] = np.frombuffer(part.read("index"), INDEX)
        source_of[part.rows] = numbers[part.mark.source]
        if signatures is not None and part.mark.source in near:
            flat = np.frombuffer(part.read("signatures"), np.uint32)
            signatures[part.rows] = flat.reshape(-1, PERMUTATIONS)
    outcomes = resolve(index, source_of, list(modes.values()), options.near_threshold, signatures)
    return Results(parts, index, outcomes, modes)
