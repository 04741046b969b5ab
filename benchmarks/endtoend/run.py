"""Tokens a second through KoDolly by those of the bare engine: one real vLLM, asked in turns.

    make bench-vllm                              six minutes, one of them vLLM's start
    make bench-vllm ARGS="--blocks 2"            a try

Prints the figures and writes them to benchmarks/endtoend/results/; ends with 1 if an answer failed
or if the ratio is below 0.98 beyond doubt: its interval's upper limit is.
"""

import argparse
import asyncio
import itertools
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from benchmarks.chaos.run import VLLM
from benchmarks.chaos.stack import ROOT
from benchmarks.endtoend import plan, report
from benchmarks.endtoend.clients import Slice, measure, session
from benchmarks.endtoend.stack import Doors, doors
from benchmarks.soak.machine import commit, loop_factory
from kodolly.engines.metrics import totals

RESULTS = Path(__file__).with_name("results")
KO = ROOT / ".kodolly" / "models" / "kodolly-ko-8m"
HITS = "vllm:prefix_cache_hits_total"
LEAST = 2  # blocks, or there is no interval


def _options() -> argparse.Namespace:
    usual = plan.Plan()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--blocks", type=int, default=usual.blocks, help="for each concurrency")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="to measure at most")
    parser.add_argument("--tokens", type=int, default=usual.tokens, help="of an answer")
    parser.add_argument("--model", type=Path, help="a model's folder (default: the embedded one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    if options.blocks < LEAST:
        parser.error(f"--blocks: {LEAST} at least")
    if not VLLM.exists():
        parser.error("no .venv-vllm here: `make vllm-env` makes it")
    return options


def main() -> int:
    options = _options()
    # Both unwind the stack, so that every child is ended; a shell's `&` would ignore Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chosen = plan.Plan(options.blocks, options.seconds, options.tokens)
    model = options.model or _embedded()
    with tempfile.TemporaryDirectory(prefix="endtoend-") as place:
        try:
            with (
                doors(Path(place), VLLM, model.resolve()) as both,
                asyncio.Runner(loop_factory=loop_factory()) as runner,
            ):
                run = report.Run(_head(model, chosen))
                runner.run(Bench(chosen, both, run).whole())
        except KeyboardInterrupt:
            return 130
        except (AssertionError, RuntimeError, OSError, aiohttp.ClientError) as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 2
    return _write(run, options.out, model.name)


def _embedded() -> Path:
    """The embedded model's folder, made if it is not there."""
    command = [sys.executable, "-m", "kodolly", "fetch", "--model", "kodolly-ko", "--out", str(KO)]
    if not (KO / "config.json").is_file():
        subprocess.run(command, check=True, cwd=ROOT)
    return KO


class Bench:
    """One run against both doors."""

    def __init__(self, chosen: plan.Plan, both: Doors, run: report.Run) -> None:
        self.plan, self.doors, self.run = chosen, both, run
        self.numbers = itertools.count()

    async def whole(self) -> None:
        """A warm-up of every kind of slice, then block after block, the concurrencies in turn."""
        async with session() as clients:
            for at_once, way in itertools.product(plan.CONCURRENCY, plan.WAYS):
                await self._slice(clients, way, at_once)
            self.run.hits.clear()
            end = time.monotonic() + self.plan.seconds
            for block, at_once in self._order():
                if time.monotonic() > end and block >= LEAST:
                    return
                made = [await self._slice(clients, way, at_once) for way in plan.order(block)]
                self.run.blocks.setdefault(at_once, []).append(made)
                said = ", ".join(f"{s.way} {s.tokens / s.seconds:.1f}" for s in made)
                print(f"block {block + 1}, {at_once} at once, tokens/s: {said}", file=sys.stderr)

    def _order(self) -> Iterator[tuple[int, int]]:
        return itertools.product(range(self.plan.blocks), plan.CONCURRENCY)

    async def _slice(self, clients: aiohttp.ClientSession, way: str, at_once: int) -> Slice:
        first = next(self.numbers)
        for _ in range(at_once - 1):
            next(self.numbers)
        numbers = range(first, first + at_once)
        before = await self._hits(clients)
        made = await measure(clients, self.doors.of(way), numbers, self.plan.tokens)
        hits = await self._hits(clients) - before
        self.run.hits[way] = self.run.hits.get(way, 0) + hits
        return made

    async def _hits(self, clients: aiohttp.ClientSession) -> int:
        engine = self.doors.engine
        key = {"Authorization": f"Bearer {engine.key}"}
        async with clients.get(engine.url + "/metrics", headers=key) as answer:
            return int(totals(await answer.text()).get(HITS, 0.0))


def _head(model: Path, chosen: plan.Plan) -> str:
    return (
        f"{datetime.now(UTC).date().isoformat()}, {os.cpu_count()} cores ({platform.machine()}),"
        f" shared and noisy; real vLLM on the CPU, {model.name}, float32, one thread; answers of"
        f" {chosen.tokens} tokens, slices in the order A B B A; commit {commit()}."
    )


def _write(run: report.Run, out: Path, name: str) -> int:
    said = report.text(run)
    print(said)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(said, encoding="utf-8")
    (out / f"{name}.json").write_text(report.as_json(run), encoding="utf-8")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
