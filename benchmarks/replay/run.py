"""Answers of a real vLLM, cut and replayed: how often a replay gives what the client already has.

    PYTHONPATH=tests python -m benchmarks.replay.run            some ten minutes
    ... --trials 32                                             fewer of each dtype

Needs `make model` and `make vllm-env`. Writes a table to benchmarks/replay/results/. Ends with 1 if a
forced replay was not the same.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.replay.engine import SLOTS, engine
from benchmarks.replay.requests import KINDS, request
from benchmarks.replay.trial import Trial, ask

Name = tuple[str, str, str, str]

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".kodolly" / "models" / "smollm2-135m-instruct"
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
RESULTS = Path(__file__).with_name("results")
DTYPES = ("bfloat16", "float32")
ALONE = 2  # of SLOTS answers, those that are first made alone


@dataclass(slots=True)
class Cell:
    """Replays of one kind of answer: how many, and how many of each way were the same."""

    trials: int = 0
    forced: int = 0
    repeated: int = 0


@dataclass(slots=True)
class Outcome:
    """All cells, by (dtype, how the answer was first made, sampling, kind); seconds by dtype."""

    cells: dict[Name, Cell] = field(default_factory=dict)
    seconds: Counter[str] = field(default_factory=Counter)


async def measure(url: str, dtype: str, trials: int, seconds: float, outcome: Outcome) -> None:
    """Round after round, until there are enough trials or the time is over.

    In a round some answers are made alone and the others in one batch; all are replayed in batches.
    """
    rng = random.Random(7)
    wanted = itertools.cycle(itertools.product(("greedy", "sampled"), KINDS))
    timeout = aiohttp.ClientTimeout(total=None, sock_read=300)
    begin, number = time.monotonic(), 0
    async with aiohttp.ClientSession(timeout=timeout) as http:
        while number < trials and time.monotonic() - begin < seconds:
            trying: list[tuple[Name, Trial]] = []
            for first, size in (("alone", ALONE), ("in a batch", SLOTS - ALONE)):
                names = [(dtype, first, *next(wanted)) for _ in range(size)]
                bodies = [
                    request(name[3], number + at, greedy=name[2] == "greedy")
                    for at, name in enumerate(names)
                ]
                number += size
                for name, trial in zip(
                    names, await _made(http, url, bodies, together=first != "alone"), strict=True
                ):
                    trial.choose_cut(rng)
                    trying.append((name, trial))
            rng.shuffle(trying)
            for force in (True, False):
                again = [trial.again(force=force) for _, trial in trying]
                replays = await asyncio.gather(*(ask(http, url, body) for body in again))
                for (name, trial), replayed in zip(trying, replays, strict=True):
                    cell = outcome.cells.setdefault(name, Cell())
                    cell.trials += force
                    if trial.agrees(replayed):
                        cell.forced += force
                        cell.repeated += not force
    outcome.seconds[dtype] = round(time.monotonic() - begin)


async def _made(
    http: aiohttp.ClientSession, url: str, bodies: list[dict[str, Any]], *, together: bool
) -> list[Trial]:
    if together:
        answers = await asyncio.gather(*(ask(http, url, body) for body in bodies))
    else:
        answers = [await ask(http, url, body) for body in bodies]
    return [Trial(body, events) for body, events in zip(bodies, answers, strict=True)]


def table(outcome: Outcome) -> str:
    """The outcome as Markdown."""
    lines = [
        "| dtype | first made | sampling | answer | forced replay: the same | repeated alone: the same |",
        "| --- | --- | --- | --- | ---: | ---: |",
    ]
    for name, cell in sorted(outcome.cells.items()):
        row = [*name, f"{cell.forced} of {cell.trials}", f"{cell.repeated} of {cell.trials}"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def total(outcome: Outcome) -> Cell:
    """All cells together."""
    cells = outcome.cells.values()
    return Cell(
        sum(c.trials for c in cells), sum(c.forced for c in cells), sum(c.repeated for c in cells)
    )


def main() -> int:
    """Runs both dtypes, one engine after the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--trials", type=int, default=272, help="of a dtype (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=270, help="for a dtype, at most")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    options = parser.parse_args()
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as place:
        for dtype in options.dtypes:
            with engine(MODEL, PYTHON, dtype, Path(place) / f"{dtype}.log") as url:
                asyncio.run(measure(url, dtype, options.trials, options.seconds, outcome))
    sums = total(outcome)
    text = table(outcome) + (
        f"\nAll: {sums.forced} of {sums.trials} forced replays were the same, and"
        f" {sums.repeated} of {sums.trials} repeated requests.\n"
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "replay.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"seconds: {dict(outcome.seconds)}")
    return 0 if sums.forced == sums.trials else 1


if __name__ == "__main__":
    sys.exit(main())
