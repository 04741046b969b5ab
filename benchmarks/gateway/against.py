"""This code's gateway beside an earlier commit's: CPU a request and a token, in alternating rounds.

Three gateways stand before one scripted engine: the earlier code, the earlier code again, and this one. What
differs between the first two is noise. Each round measures all three twice, each round in another order.
"""

import asyncio
import contextlib
import itertools
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gateway.bench import Bench, loop_factory
from benchmarks.gateway.comparison import Measurement, table, verdicts
from benchmarks.gateway.environments import ROOT
from benchmarks.gateway.load import run as send
from benchmarks.gateway.plan import MODEL, Cell, Target
from benchmarks.gateway.processes import ask, free_port, running, wait_for, wait_for_port
from benchmarks.gateway.report import Result, machine, percentile, pooled

OLD, OLD_AGAIN, NEW = "old", "old again", "new"
ROUNDS = 12
FEWEST_ROUNDS = 8
SOURCE_ROOTS = ("platform", "conversation_templates", "adapters")


def cells(quick: bool) -> list[Cell]:
    """What is measured; the engine thinks for 50 ms and paces tokens by 10 ms."""
    if quick:
        return [Cell("whole", 16, 160, 32, 0.05, 0.0), Cell("stream", 16, 16, 64, 0.05, 0.01)]
    return [
        Cell("whole", 1, 20, 32, 0.01, 0.0),
        Cell("whole", 16, 240, 32, 0.05, 0.0),
        Cell("stream", 16, 16, 256, 0.05, 0.01),
        Cell("stream", 64, 64, 256, 0.05, 0.01),
    ]


def compare(revision: str, *, quick: bool, rounds: int | None) -> int:
    """Measure, print the table, and return the exit status: 0 where no figure got worse.

    Raises RuntimeError for a revision that git does not have, or a gateway that does not start.
    """
    number = max(rounds or (FEWEST_ROUNDS if quick else ROUNDS), FEWEST_ROUNDS)
    with tempfile.TemporaryDirectory(prefix="gateway-") as place:
        folder = Path(place)
        commit = _unpack(revision, folder / "old-tree")
        trees = {OLD: folder / "old-tree", OLD_AGAIN: folder / "old-tree", NEW: ROOT}
        with _gateways(folder, trees) as (targets, engine_port, engine_pid):
            bench = Bench(targets, engine_port, engine_pid, float("inf"))
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                measurements = runner.run(_measure(bench, cells(quick), number))
    errors = sum(m.errors for m in measurements)
    sys.stdout.write(f"Against {revision} ({commit}); {machine()}; {number} rounds.\n\n")
    sys.stdout.write(table(measurements) + "\n")
    for line in (judgements := verdicts(measurements)):
        sys.stdout.write(f"{line}\n")
    if errors:
        sys.stdout.write(f"{errors} answers were wrong or missing.\n")
    return 1 if errors or any(judgement.is_worse for judgement in judgements) else 0


async def _measure(bench: Bench, plan: list[Cell], rounds: int) -> list[Measurement]:
    measurements = []
    for target in bench.targets:  # first requests build caches and pools: not measured
        for kind in ("whole", "first"):
            await send(target.port, Cell(kind, 4, 64, 16, 0.0, 0.0))
    orders = itertools.cycle(itertools.permutations(bench.targets))
    for number, order in zip(range(rounds), orders, strict=False):
        for cell in plan:
            delays = {"first_delay": cell.first_delay, "token_delay": cell.token_delay}
            ask(f"http://127.0.0.1:{bench.engine_port}/scripted", delays)
            results = {target: Result(target.name, cell) for target in order}
            # There and back: what changes on the machine meanwhile meets all three alike.
            for target in (*order, *reversed(order)):
                await bench.measure(target, cell, results[target])
            measurements += [_measurement(number, result) for result in results.values()]
    return measurements


def _measurement(number: int, result: Result) -> Measurement:
    cell = result.cell
    tokens = result.answers * cell.tokens
    return Measurement(
        version=result.target,
        round=number,
        unit="token" if cell.kind == "stream" else "request",
        concurrency=cell.concurrency,
        cpu=result.gateway_cpu / max(tokens if cell.kind == "stream" else result.answers, 1),
        whole=percentile(pooled(result.whole), 50),
        first=percentile(pooled(result.first), 50),
        errors=result.errors,
    )


def _unpack(revision: str, tree: Path) -> str:
    """Write the files of a revision into `tree`, as git has them; returns the short commit."""
    git = ["git", "-C", str(ROOT)]
    name = [*git, "rev-parse", "--short", "--verify", f"{revision}^{{commit}}"]
    done = subprocess.run(name, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"--against {revision}: git has no such commit here")
    archive = tree.with_suffix(".tar")
    command = [*git, "archive", "--output", str(archive), done.stdout.strip(), *SOURCE_ROOTS]
    subprocess.run(command, check=True)
    with tarfile.open(archive) as files:
        files.extractall(tree, filter="data")
    return done.stdout.strip()


@contextlib.contextmanager
def _gateways(folder: Path, trees: dict[str, Path]) -> Iterator[tuple[list[Target], int, int]]:
    """Controller and API of each version, before one engine: the targets, its port and process id."""
    engine_port = free_port()
    controllers = {name: free_port() for name in trees}
    with contextlib.ExitStack() as stack:
        pids = {}
        for name, port in controllers.items():
            command = [sys.executable, "-m", "kodolly", "controller", "--port", str(port)]
            process = running(_slug(name, "controller"), command, folder, _path(trees[name]))
            child = stack.enter_context(process)
            wait_for_port(port, child)
            pids[name] = child.pid
        engine = [sys.executable, "-m", "support.scripted_engine", "--model", MODEL]
        engine += ["--port", str(engine_port), "--script", '{"length": 4096}']
        for port in controllers.values():
            engine += ["--register-kodolly", f"http://127.0.0.1:{port}"]
        environment = {"PYTHONPATH": str(ROOT / "tests")}
        engine_child = stack.enter_context(running("engine", engine, folder, environment))
        wait_for_port(engine_port, engine_child)
        targets = []
        for name, controller in controllers.items():
            port = free_port()
            command = [sys.executable, "-m", "kodolly", "api", "--port", str(port)]
            command += ["--controller", f"http://127.0.0.1:{controller}"]
            child = stack.enter_context(
                running(_slug(name, "api"), command, folder, _path(trees[name]))
            )
            wait_for(f"http://127.0.0.1:{port}/v1/models", f'"id": "{MODEL}"', child)
            targets.append(Target(name, port, (pids[name], child.pid)))
        time.sleep(1)
        yield targets, engine_port, engine_child.pid


def _path(tree: Path) -> dict[str, str]:
    """The environment in which `python -m kodolly` is that tree's. Raises RuntimeError if it is not."""
    environment = {"PYTHONPATH": os.pathsep.join(str(tree / root) for root in SOURCE_ROOTS)}
    code = "import kodolly; print(kodolly.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    if not Path(done.stdout.strip()).is_relative_to(tree):
        raise RuntimeError(f"python takes kodolly from {done.stdout.strip()}, not from {tree}")
    return environment


def _slug(name: str, part: str) -> str:
    return f"{part}-{name.replace(' ', '-')}"
