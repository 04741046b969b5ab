"""Hundreds of streams through a real stack while its parts are killed, stopped, drained and cut off.

    make bench-chaos                        scripted engines, every fault, some minutes
    make bench-chaos ARGS=--quick           two minutes
    make bench-chaos ARGS=--stored          stored answers alone
    make bench-chaos ARGS=--vllm            two real vLLM workers on this CPU

Every answer is compared with what it must be, character by character. Stored answers come last, since they
outlive their API process too: each is attached again elsewhere. Prints the figures, writes
them and a timeline to benchmarks/chaos/results/; ends with 1 if an answer failed or was not right.
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
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.chaos import asks, picture, plan, report, stored
from benchmarks.chaos.asks import Ask, Expected
from benchmarks.chaos.clients import Crowd
from benchmarks.chaos.faults import Chaos
from benchmarks.chaos.network import Network, network
from benchmarks.chaos.stack import ROOT, Stack, stack
from benchmarks.chaos.watch import Watch

CLEAN = 10  # answers that must have been right before the first fault
RESULTS = Path(__file__).with_name("results")
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
SMOLLM2 = ROOT / ".kodolly" / "models" / "smollm2-135m-instruct"


class Failed(Exception):
    """The run cannot say anything; the text says why and what to do."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--quick", action="store_true", help="fewer streams and faults")
    mode.add_argument("--vllm", action="store_true", help="two real vLLM workers on this CPU")
    parser.add_argument("--stored", action="store_true", help="stored answers alone")
    parser.add_argument("--streams", type=int, help="streams at a time")
    parser.add_argument("--rounds", type=int, help="times every fault is done")
    parser.add_argument("--faults", help=f"some of: {', '.join(plan.FAULTS)}")
    parser.add_argument("--model", type=Path, default=SMOLLM2, help="what --vllm serves")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--logs", type=Path, help="keep logs and journals here")
    options = parser.parse_args()
    unknown = set((options.faults or "").split(",")) - {*plan.FAULTS, ""}
    if unknown:
        parser.error(f"--faults: unknown: {', '.join(sorted(unknown))}")
    if options.vllm and options.stored:
        parser.error("--stored: not with --vllm, whose answers are not scripted")
    if options.vllm and not VLLM.exists():
        parser.error("--vllm: no .venv-vllm here: `make vllm-env` makes it")
    if options.vllm and not (options.model / "config.json").is_file():
        parser.error(f"--model: no model in {options.model}: `make model` fetches one")
    return options


def main() -> int:
    options = _options()
    # Both unwind the stack, so that every child is ended; a shell's `&` would ignore Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    mode, chosen, kinds = "full", plan.FULL, list(plan.FAULTS)
    if options.quick:
        mode, chosen, kinds = "quick", plan.QUICK, list(plan.QUICK_FAULTS)
    elif options.vllm:
        mode, chosen, kinds = "vllm", plan.VLLM, list(plan.VLLM_FAULTS)
    if options.faults:
        kinds = options.faults.split(",")
    sizes = {"streams": options.streams, "rounds": options.rounds}
    chosen = replace(chosen, **{name: value for name, value in sizes.items() if value})
    with tempfile.TemporaryDirectory(prefix="chaos-") as scratch:
        place = options.logs or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        engine = VLLM if options.vllm else None
        try:
            with (
                network(chosen.workers) as net,
                stack(chosen, net, place, engine, options.model) as running,
                asyncio.Runner(loop_factory=_loop_factory()) as runner,
            ):
                run = Run(mode, chosen, running, place)
                if not options.stored:
                    runner.run(run.whole(kinds))
                if not options.vllm:
                    run.stored = runner.run(stored.run_stored(chosen, running))
        except KeyboardInterrupt:
            return 130
        except (Failed, AssertionError, RuntimeError) as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 2
        return run.write_stored(options.out) if options.stored else run.write(options.out)


class Run:
    """One run over a stack that stands."""

    def __init__(self, mode: str, chosen: plan.Plan, running: Stack, place: Path) -> None:
        self.mode, self.plan, self.stack, self.place = mode, chosen, running, place
        self.crowd = Crowd([api.url for api in running.apis], chosen.silence)
        self.watch = Watch(running.controller.url, running.token)
        self.chaos = Chaos(running, self.crowd, self.watch, chosen)
        self.skipped: dict[str, str] = {}
        self.seconds = 0.0
        self.stored: stored.Run | None = None

    async def whole(self, kinds: list[str]) -> None:
        """Load, an undisturbed beginning that must be clean, the faults, the last answers' end."""
        begin = time.monotonic()
        watching = asyncio.create_task(self.watch.run())
        questions = await self._questions()
        load = asyncio.create_task(self.crowd.run(questions, self.plan.streams))
        end = time.monotonic() + self.plan.back
        while len(self.crowd.outcomes) < CLEAN and time.monotonic() < end:
            await asyncio.sleep(0.1)
        await asyncio.sleep(self.plan.warmup)
        for number, outcome in enumerate(self.crowd.outcomes):
            if outcome.failed or not outcome.verdict.clean:
                said = f"{outcome.answer.error}, {outcome.verdict}"
                raise Failed(f"answer {number} ({outcome.ask.name}) is wrong undisturbed: {said}")
        await self.chaos.run(self._possible(kinds, self.stack.network) * self.plan.rounds)
        self.crowd.stopping = True
        await load
        watching.cancel()
        self.seconds = time.monotonic() - begin

    def _possible(self, kinds: list[str], net: Network) -> list[str]:
        if net.why_not and "worker cut off" in kinds:
            self.skipped["worker cut off"] = net.why_not
        return [kind for kind in kinds if kind not in self.skipped]

    async def _questions(self) -> Iterator[Ask]:
        """Requests without end, with what their answers must be."""
        if self.mode != "vllm":
            return asks.scripted(self.plan)
        known = asks.greedy(self.plan)
        trial = Crowd(self.crowd.doors, self.plan.silence)
        gate = asyncio.Semaphore(self.plan.streams)

        async def learn(number: int, session: aiohttp.ClientSession) -> None:
            async with gate:
                outcome = await trial.one(f"calm-{number}", known[number], 0, session)
            said = outcome.answer.choices.get(0)
            if outcome.failed or said is None:
                raise Failed(f"undisturbed answer {number}: {outcome.answer.error}")
            known[number].expected = [Expected(said.text, said.reasons[0], tuple(said.ids))]
            known[number].prompt_tokens = outcome.answer.usage[0]["prompt_tokens"]

        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(learn(number, session) for number in range(len(known))))
        return itertools.cycle(known)

    def write(self, out: Path) -> int:
        """Prints and keeps the figures; the exit code."""
        lines = None
        if self.mode != "vllm":
            lines = report.journals({w.url: w.journal for w in self.stack.workers})
        made = report.totals(self.crowd, self.chaos.faults, lines)
        table = report.rows(self.crowd, self.chaos.faults, lines, self.watch, self.plan.slow)
        facts = self._facts()
        bad = report.examples(self.crowd)
        text = report.text(made, table, facts)
        if self.stored is not None:
            text += f"\n{self.stored.text()}"
            facts["stored"] = self.stored.as_dict()
        print(text)
        for example in bad:
            print(f"not right: {example}", file=sys.stderr)
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{self.mode}.md").write_text(text, encoding="utf-8")
        (out / f"{self.mode}.json").write_text(
            report.as_json(made, table, facts | {"not_right": bad}), "utf-8"
        )
        names = {worker.url: worker.name for worker in self.stack.workers}
        picture.draw(self.crowd, self.chaos.faults, self.watch, names, out / f"{self.mode}.svg")
        return 0 if made.good and (self.stored is None or self.stored.totals.good) else 1

    def write_stored(self, out: Path) -> int:
        """The same for stored answers alone."""
        assert self.stored is not None
        text = f"{self._head(self.stored.seconds)}\n\n{self.stored.text()}"
        print(text)
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{self.mode}-stored.md").write_text(text, encoding="utf-8")
        return 0 if self.stored.totals.good else 1

    def _facts(self) -> dict[str, Any]:
        head = self._head(self.seconds)
        return {"head": head, "commit": _commit(), "mode": self.mode, "skipped": self.skipped}

    def _head(self, seconds: float) -> str:
        engines = "real vLLM, greedy" if self.mode == "vllm" else "scripted engines"
        return (
            f"{datetime.now(UTC).date().isoformat()}, {os.cpu_count()} cores"
            f" ({platform.machine()}), shared and noisy; {self.plan.workers} workers ({engines}),"
            f" {self.plan.apis} API process(es), {self.plan.streams} streams at a time,"
            f" {seconds:.0f} s; commit {_commit()}."
        )


def _commit() -> str:
    """What was measured; `-dirty` where files had changes that are not committed."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _loop_factory() -> Any:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
