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
from .output.report import report
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
    licence: str = "",
    jobs: int | None = None,
    engine: pool.Engine = "local",
    restart: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Summary:
    """Convert every file that `arguments` name into the folder `out`; returns the counts.

    `jobs` is the number of processes (default: one per core); with 1, everything runs in this process and none
    of its global state is changed. A killed run is continued: shards whose bytes are the same are not
    converted again. `source` is the files' own, without which each is recognised, and `licence` that of files whose
    licence nothing else states. Raises UserError, and then has changed nothing but the folder's `.work`.
    """
    options = options or Options()
    modes_of(options.rules)
    version = importlib.metadata.version("kodolly")
    settings = {
        "version": version,
        "index": str(INDEX),  # parts of another layout cannot be read
        "options": plain_options(options),
        "tokenizer": str(options.tokenizer),
        "source": [source.name, str(source.columns)] if source else None,
    }
    progress = progress or Progress("convert", show=False)
    with run_folder(out, arguments, settings, restart=restart, force=force) as work, progress:
        plan = Plan(arguments, SOURCES, source, licence)
        sizes = [member.size for member in plan.members]
        progress.total = None if None in sizes else sum(filter(None, sizes))
        parts = _convert_all(plan, work / "parts", options, jobs or pool.cores(), engine, progress)
        progress.note("looking for duplicates")
        results = _resolve(plan, parts, options)
        output = work / "out"
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        progress.note("writing")
        summary = summarise(plan, results, options, version)
        splits, lines = write(results, output, options)
        summary = msgspec.structs.replace(summary, splits=tuple(splits), rejected_lines=lines)
        if faults := summary.faults():
            raise UserError(f"the counts do not add up, which is a bug in kodolly: {faults[0]}")
        write_summary(summary, output)
        from .output import pictures  # here, as matplotlib takes long to import

        (output / CARD_FILE).write_bytes(card(summary, pictures.draw(summary, output)).encode())
        finish(work, output)
        rows, seconds = sum(split.rows for split in summary.splits), progress.seconds
        progress.say(
            f"{rows:,} rows, {lines:,} rejected, in {seconds:,.1f} s "
            f"({rows / seconds:,.0f} rows/s, {progress.done / 1e6 / seconds:,.0f} MB/s)"
        )
        for line in report(summary):
            progress.say(line)
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

    def shards_without_part() -> Generator[tuple[Shard, Source], None, None]:
        with closing(plan.shards(progress.add)) as shards:
            for shard, source in shards:
                paths.append(folder / f"{shard.key}.part")
                mark = read_mark(paths[-1])
                identity = (shard.file, shard.source, shard.identity)
                if mark and (mark.file, mark.source, mark.identity) == identity:
                    report(mark)
                else:
                    yield shard, source

    with closing(shards_without_part()) as tasks:  # closes the open input file if a shard fails
        pool.run(tasks, options, folder, report, jobs=jobs, engine=engine)
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
    """Read the index of all parts and decide the outcome of every row."""
    total = parts[-1].rows.stop if parts else 0
    defaults = {one.source.name: one.source.rules for one in plan.inputs}
    modes = {name: modes_of(options.rules, rules) for name, rules in defaults.items()}
    numbers = {name: number for number, name in enumerate(modes)}
    with_signatures = [name for name, mode in modes.items() if mode["near-duplicate"] != OFF]
    index, source_of = np.empty(total, INDEX), np.empty(total, np.uint8)
    signatures = np.zeros((total, PERMUTATIONS), np.uint32) if with_signatures else None
    for part in parts:
        index[part.rows] = np.frombuffer(part.read("index"), INDEX)
        source_of[part.rows] = numbers[part.mark.source]
        if signatures is not None and part.mark.source in with_signatures:
            flat = np.frombuffer(part.read("signatures"), np.uint32)
            signatures[part.rows] = flat.reshape(-1, PERMUTATIONS)
    outcomes = resolve(index, source_of, list(modes.values()), options.near_threshold, signatures)
    return Results(parts, index, outcomes, modes)
