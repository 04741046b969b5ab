"""Multi-turn chats over four workers: how much of their prompts the workers' caches still hold.

    python -m benchmarks.affinity.run            all loads, some minutes
    python -m benchmarks.affinity.run --quick    one load, short

Writes a table, a JSON file and a picture to benchmarks/affinity/results/. Exits with 1 when
affinity misses its target.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.affinity import report
from benchmarks.affinity.chats import Habits
from benchmarks.affinity.engine import Size
from benchmarks.affinity.simulate import Outcome, Setup, Simulation
from benchmarks.affinity.timing import dispatch_times

RESULTS = Path(__file__).with_name("results")
WORKERS = 4
AFFINITY = "affinity"
SETUPS = [
    Setup(AFFINITY, "affinity"),
    Setup("affinity, 3 API processes", "affinity", replicas=3),
    Setup("affinity, 3, any of them a turn", "affinity", replicas=3, hop=True),
    Setup("shortest_queue", "shortest_queue"),
    Setup("round_robin", "round_robin"),
]
IDEAL = Setup("one worker (ideal)", "round_robin", workers=1)
# name: chats begun a second, seconds, blocks of 16 tokens a worker
CELLS = {
    "light": (0.7, 500.0, 8_000),
    "busy": (2.0, 250.0, 8_000),
    "heavy": (6.0, 120.0, 24_000),
    "little cache": (2.0, 250.0, 3_500),
}
# Here even one worker with everybody's cache has room for two thirds; shown, but no target.
STRESS = "little cache"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="one load, one seed, short")
    parser.add_argument("--seeds", type=int, default=2, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def ideal_of(size: Size) -> Size:
    """One worker as large and as fast as all of them."""
    return replace(
        size,
        blocks=size.blocks * WORKERS,
        max_running=size.max_running * WORKERS,
        step_tokens=size.step_tokens * WORKERS,
        prefill=size.prefill / WORKERS,
        decode=size.decode / WORKERS,
    )


def measure(
    cell: str, seeds: range, *, quick: bool
) -> tuple[list[report.Line], list[dict[str, object]]]:
    """Every setup at one load."""
    rate, seconds, blocks = CELLS[cell]
    habits, size = Habits(rate=rate, seconds=120.0 if quick else seconds), Size(blocks)
    lines: list[report.Line] = []
    raw: list[dict[str, object]] = []
    ideals: list[Outcome] = []
    for setup in [IDEAL, *SETUPS]:
        began = time.monotonic()
        own = ideal_of(size) if setup is IDEAL else size
        outcomes = [Simulation(setup, habits, own, seed).run() for seed in seeds]
        ideals = ideals or outcomes
        lines.append(report.line(cell, ideals, outcomes))
        raw += [
            {"cell": cell, "seed": s, **o.figures()} for s, o in zip(seeds, outcomes, strict=True)
        ]
        print(
            f"{cell:12} {setup.name:32} {lines[-1].by_ideal:.3f} of the ideal,"
            f" worst load {lines[-1].busy_worst:.2f} ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
    return lines, raw


def main() -> int:
    """Runs, writes, and says whether the targets were met."""
    options = _options()
    seeds = range(1, 2 if options.quick else options.seeds + 1)
    cells = {
        name: f"{rate:g} chats begin a second, {blocks * 16:,} tokens of cache a worker"
        for name, (rate, _, blocks) in CELLS.items()
        if not options.quick or name == "busy"
    }
    lines: list[report.Line] = []
    raw: list[dict[str, object]] = []
    for name in cells:
        more, figures = measure(name, seeds, quick=options.quick)
        lines += more
        raw += figures
    timed = dispatch_times()
    asked = " ".join(sys.argv[1:])
    command = "make bench-affinity" + (f" ARGS='{asked}'" if asked else "")
    text = report.markdown(lines, cells, command, timed.markdown())
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "simulated.md").write_text(text, encoding="utf-8")
    data = {"lines": [asdict(each) for each in lines], "runs": raw, "dispatch": timed.figures()}
    (options.out / "simulated.json").write_text(
        json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    report.picture(lines, options.out / "simulated.svg")
    print(text)
    missed = [
        each
        for each in lines
        if each.setup == AFFINITY
        and each.cell != STRESS
        and (each.by_ideal < report.TARGET_RATE or each.busy_worst > report.TARGET_LOAD)
    ]
    for each in missed:
        print(f"target missed: {each}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
