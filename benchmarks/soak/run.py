"""Two hundred streams for twenty minutes, and whether the API's memory stays what it is.

    make bench-soak                                       20 minutes, and some to fill the caches
    make bench-soak ARGS="--minutes 2 --streams 50"

Prints the figures, writes them and a picture to benchmarks/soak/results/; ends with 1 if an answer
failed or was wrong, or if the API or the controller grew.
"""

import argparse
import asyncio
import os
import platform
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.soak import judge, report
from benchmarks.soak.asks import Questions
from benchmarks.soak.clients import Crowd
from benchmarks.soak.machine import commit, loop_factory
from benchmarks.soak.memory import Sample, Sampler
from benchmarks.soak.plan import ANSWERS, BOUND, ENGINES, FILES, FILLING, KEYS, LAST, Soak
from benchmarks.soak.stack import Stack, stack

RESULTS = Path(__file__).with_name("results")
IDLE = 75.0  # seconds for kept connections to be closed once everybody has left: engines' after 60
AGAIN = 1_000_000  # number of the first question after the filling's
HARM = 20  # errors after which going on would say nothing more


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=Soak().minutes)
    parser.add_argument("--streams", type=int, default=Soak().streams, help="clients at a time")
    parser.add_argument(
        "--fill", type=int, default=Soak().fill, help="calls beforehand, which fill the caches"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    if options.minutes < 0.5 or options.streams < 1:
        parser.error("--minutes: half a minute at least; --streams: one at least")
    return options


def main() -> int:
    options = _options()
    # Both unwind the stack, so that every child is ended; a shell's `&` would ignore Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    soak = Soak(options.minutes, options.streams, options.fill)
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        try:
            with (
                stack(Path(place), KEYS, soak.streams) as running,
                asyncio.Runner(loop_factory=loop_factory()) as runner,
            ):
                run = runner.run(measure(soak, running))
        except KeyboardInterrupt:
            return 130
        except (AssertionError, RuntimeError, OSError) as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 2
    return _write(run, options.out)


async def measure(soak: Soak, running: Stack) -> report.Run:
    """Fills the caches, then holds the streams open and looks at the processes."""
    crowd = Crowd(running.api.url, running.keys)
    services = {"api": running.api, "controller": running.controller}
    pids = {name: one.process.pid for name, one in services.items() if one.process}
    before = Sampler(pids, lambda: crowd.open).look()
    began = time.monotonic()
    running.answer_by(FILLING)
    await crowd.fill(soak.fill, soak.streams, Questions(FILLING))
    running.answer_by(ANSWERS)
    filled = time.monotonic() - began
    print(f"{soak.fill:,} calls beforehand in {filled:.0f} s", file=sys.stderr)
    load = asyncio.create_task(crowd.run(soak.streams, Questions(first=AGAIN)))
    sampler = Sampler(pids, lambda: crowd.open)
    looking = asyncio.create_task(sampler.run(soak.minutes * 60))
    while not looking.done() and sum(crowd.errors.values()) < HARM and not load.done():
        await asyncio.wait([looking], timeout=10)
        _say(sampler.samples, crowd)
    looking.cancel()
    crowd.stopping = True
    async with asyncio.timeout(LAST):
        await load
    await asyncio.sleep(IDLE)
    head = (
        f"{datetime.now(UTC).date().isoformat()}, {os.cpu_count()} cores ({platform.machine()}),"
        f" shared; {soak.minutes:g} minutes, {soak.streams} clients, {ENGINES} scripted engines,"
        f" {KEYS} client keys, {soak.fill:,} calls beforehand in {filled:.0f} s;"
        f" Python {platform.python_version()}; commit {commit()}."
    )
    run = report.Run(
        head, sampler.samples, before, sampler.look(), dict(crowd.ended), crowd.events,
        dict(crowd.errors), crowd.examples,
    )  # fmt: skip
    lines = {name: run.line(name) for name in run.names}
    run.faults = judge.faults(crowd.errors.total(), lines, run.files(), BOUND, FILES)
    return run


def _say(samples: list[Sample], crowd: Crowd) -> None:
    if samples:
        last = samples[-1]
        held = ", ".join(f"{name} {h.own / 2**20:.1f} MB" for name, h in last.held.items())
        print(
            f"{last.at:6.0f} s  {last.open} open, {crowd.ended.total():,} ended,"
            f" {crowd.errors.total()} errors; {held}",
            file=sys.stderr,
        )


def _write(run: report.Run, out: Path) -> int:
    said = report.text(run)
    print(said)
    for example in run.examples:
        print(f"not right: {example}", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.md").write_text(said, encoding="utf-8")
    (out / "soak.json").write_text(report.as_json(run), encoding="utf-8")
    report.draw(run, out / "soak.svg")
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
