"""Measuring: every cell on every target in turn, and whether each answer is the engine's own."""

import asyncio
import sys
import time
from collections.abc import Callable

from benchmarks.gateway import load, report
from benchmarks.gateway.plan import Cell, Target
from benchmarks.gateway.processes import ask, cpu_seconds, memory
from benchmarks.gateway.report import Result

PATIENCE = 75.0  # seconds; a little under the load generator's own for one answer


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
                        await self.measure(target, cell, result)
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
        kib = (result.memory or 0.0) / 1024
        print(f"{cell.name:<20} {target.name:<26} {kib:.0f} KiB a stream", file=sys.stderr)

    def _engine(self, path: str) -> str:
        return f"http://127.0.0.1:{self.engine_port}{path}"

    async def measure(self, target: Target, cell: Cell, result: Result) -> None:
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


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
