"""KoDolly's gateway against FastChat's and others, before one scripted engine, interleaved.

    python -m benchmarks.gateway.run            the full run with every rival, under half an hour
    python -m benchmarks.gateway.run --quick    about a minute, FastChat and ours alone

Prints a Markdown table; writes it, a JSON file and a bar chart to benchmarks/gateway/results/.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gateway import load, report
from benchmarks.gateway.environments import version
from benchmarks.gateway.plan import Cell, Target, cells
from benchmarks.gateway.processes import ask, cpu_seconds, memory
from benchmarks.gateway.report import Result
from benchmarks.gateway.rivals import Rival, rivals
from benchmarks.gateway.stacks import FASTCHAT, KODOLLY, KODOLLY_STOCK, stacks

OWN = {"fastchat": FASTCHAT, "kodolly": KODOLLY, "kodolly-stock": KODOLLY_STOCK}
PATIENCE = 75.0  # seconds; a little under the load generator's own for one answer
RESULTS = Path(__file__).with_name("results")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, help="default 3, with --quick 1")
    parser.add_argument(
        "--targets",
        help=f"gateways beside `direct`, with commas (default: {','.join(OWN)} with --quick,"
        f" else also {','.join(rivals(None))})",
    )
    parser.add_argument(
        "--production-stack", type=Path, metavar="DIR", help="a checkout of production-stack"
    )
    parser.add_argument(
        "--seconds", type=float, help="start no cell after this (default 1500 or 50)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    keys = [*OWN] if options.quick else [*OWN, *rivals(None)]
    if options.targets is not None:
        keys = [key for key in options.targets.split(",") if key]
    if unknown := sorted(set(keys) - {*OWN, *rivals(None)}):
        parser.error(f"--targets: unknown: {', '.join(unknown)}")
    options.keys = keys
    return options


def main() -> int:
    options = _options()
    # Both unwind the stack, so that every child is ended; a shell's `&` would ignore Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    names = [OWN[key] for key in options.keys if key in OWN]
    known = rivals(options.production_stack and options.production_stack.resolve())
    others = [known[key] for key in options.keys if key in known]
    rounds = options.rounds or (1 if options.quick else 3)
    seconds = options.seconds or (50 if options.quick else 1500)
    with tempfile.TemporaryDirectory(prefix="gateway-") as place:
        try:
            with stacks(Path(place), names, others) as standing:
                targets, engine_port, engine_pid, skipped = standing
                deadline = time.monotonic() + seconds
                bench = Bench(targets, engine_port, engine_pid, deadline)
                with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                    results = runner.run(bench.run(cells(options.quick), rounds))
        except KeyboardInterrupt:
            return 130
        except (RuntimeError, TimeoutError) as failure:
            _show_logs(Path(place))
            print(f"error: {failure}", file=sys.stderr)
            return 1
    facts = {
        "rounds": bench.rounds,
        "quick": options.quick,
        "left_out": bench.left_out,
        "skipped": skipped,
        "versions": _versions(others),
    }
    _write(results, [target.name for target in targets], options.out, facts)
    return 1 if any(r.errors for r in results if r.target in {"direct", KODOLLY}) else 0


class Bench:
    """One run: every cell on every target in turn, round after round."""

    def __init__(
        self, targets: list[Target], engine_port: int, engine_pid: int, deadline: float
    ) -> None:
        self.targets, self.deadline = targets, deadline
        self.engine_port, self.engine_pid = engine_port, engine_pid
        self.expected: dict[Cell, str] = {}
        self.rounds = 0
        self.left_out: list[str] = []
        self.rates: dict[str, float] = {}  # target -> the most tokens a second it has streamed

    async def run(self, plan: list[Cell], rounds: int) -> list[Result]:
        results: dict[tuple[str, Cell], Result] = {}
        for target in self.targets:  # first requests build caches and pools: not measured
            for kind in ("whole", "first"):
                await load.run(target.port, Cell(kind, 2, 4, 16, 0.0, 0.0))
        for number in range(rounds):
            if time.monotonic() > self.deadline:
                break
            self.rounds = number + 1
            for cell in (cell for cell in plan if number == 0 or not cell.once):
                if time.monotonic() > self.deadline:
                    self.left_out.append(f"{cell.name} of round {number + 1}")
                    continue
                ask(
                    self._engine("/scripted"),
                    {"first_delay": cell.first_delay, "token_delay": cell.token_delay},
                )
                for target in self.targets * cell.slices:
                    if self._too_slow(target, cell):
                        self._leave_out(f"{cell.name} of {target.name} (too slow for it)")
                        continue
                    result = results.setdefault((target.name, cell), Result(target.name, cell))
                    if cell.kind == "idle":
                        await self._idle(target, cell, result)
                    else:
                        await self._measure(target, cell, result)
        return list(results.values())

    def _too_slow(self, target: Target, cell: Cell) -> bool:
        """Whether its answers would outlast the load generator's patience, by what it did so far."""
        rate = self.rates.get(target.name)
        tokens = cell.concurrency * cell.tokens
        return cell.kind == "stream" and rate is not None and tokens / rate > PATIENCE

    def _leave_out(self, what: str) -> None:
        if what not in self.left_out:
            self.left_out.append(what)

    async def _idle(self, target: Target, cell: Cell, result: Result) -> None:
        """What streams that are open and silent hold in the gateway's memory."""
        if not target.pids:
            return
        before, during, started = await load.hold(target.port, cell, lambda: memory(target.pids))
        result.errors += cell.requests - started
        if started:
            result.memory = (during - before) / started
        end = time.monotonic() + 30
        while time.monotonic() < end and ask(self._engine("/load"))["server_load"]:
            await asyncio.sleep(0.2)
        held = (result.memory or 0.0) / 1024
        print(f"{cell.name:<20} {target.name:<26} {held:.0f} KiB a stream", file=sys.stderr)

    def _engine(self, path: str) -> str:
        return f"http://127.0.0.1:{self.engine_port}{path}"

    async def _measure(self, target: Target, cell: Cell, result: Result) -> None:
        await asyncio.sleep(0.2)
        gateway, engine = cpu_seconds(target.pids), cpu_seconds([self.engine_pid])
        own, begin = time.process_time(), time.monotonic()
        samples = await load.run(target.port, cell)
        wall = time.monotonic() - begin
        result.load_cpu += time.process_time() - own
        result.gateway_cpu += cpu_seconds(target.pids) - gateway
        result.engine_cpu += cpu_seconds([self.engine_pid]) - engine
        good = [sample for sample in samples if self._is_good(sample, cell, result)]
        result.answers += len(good)
        if cell.kind == "stream" and good:
            rate = len(good) * cell.tokens / wall
            self.rates[target.name] = max(self.rates.get(target.name, 0.0), rate)
        result.whole.append([sample.seconds for sample in good])
        result.first.append([sample.first for sample in good if sample.first is not None])
        median = report.percentile(result.whole[-1], 50) or 0.0
        print(
            f"{cell.name:<20} {target.name:<26} p50 {median * 1000:8.1f} ms, {wall:5.1f} s, "
            f"{result.errors} errors",
            file=sys.stderr,
        )

    def _is_good(self, sample: load.Sample, cell: Cell, result: Result) -> bool:
        """An answer counts only if it says what the engine says when asked directly."""
        error = sample.error
        if error is None:
            try:
                text = load.text_of(sample.raw, cell.streamed)
            except (ValueError, KeyError, IndexError) as failure:
                error = f"{type(failure).__name__}: {failure}"
            else:
                if text != self.expected.setdefault(cell, text):
                    error = "other text than the engine's"
        if error is not None:
            result.errors += 1
            result.first_error = result.first_error or error[:200]
        return error is None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _show_logs(place: Path) -> None:
    for log in sorted(place.glob("*.out")):
        tail = log.read_text(errors="replace").splitlines()[-8:]
        print(f"--- {log.name}", *tail, sep="\n", file=sys.stderr)


def _write(results: list[Result], targets: list[str], out: Path, run: dict[str, Any]) -> None:
    lines = report.rows(results, targets)
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": report.machine(),
        **run,
        "results": [result.figures() for result in results],
    }
    text = f"{_head(facts)}\n\n{report.table(lines, targets, KODOLLY, FASTCHAT)}\n"
    sys.stdout.write(text)
    out.mkdir(parents=True, exist_ok=True)
    name = "quick" if run["quick"] else "full"
    (out / f"{name}.md").write_text(text)
    (out / f"{name}.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    (out / f"{name}.svg").write_text(report.chart(lines, targets))


def _head(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    text = f"{facts['date']}, {facts['machine']}; {versions}; {facts['rounds']} round(s)."
    if facts["left_out"]:
        text += f" Left out for time: {', '.join(facts['left_out'])}."
    for name, why in facts["skipped"].items():
        text += f"\n\n{name} is not in this run: {why}."
    return text


def _versions(others: list[Rival]) -> dict[str, str]:
    pinned = {rival.name: version(rival.key, rival.package) for rival in others if rival.package}
    own = {"kodolly": metadata.version("kodolly"), "fschat": version("fastchat", "fschat")}
    return {name: number for name, number in (own | pinned).items() if number}


if __name__ == "__main__":
    sys.exit(main())
