"""What strangers can do to a stack without a key, beside twenty honest streams.

    make bench-hostile                                  100,000 raw cases, some minutes
    make bench-hostile ARGS=--quick                     3,000 raw cases
    make bench-hostile ARGS="--engine transformers"     before the real engine with the embedded model

Everything stays on loopback. Prints the figures, writes them to benchmarks/hostile/results/; ends
with 1 if a bar was not kept.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import tempfile
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.chaos.stack import ROOT
from benchmarks.hostile import report
from benchmarks.hostile.honest import Crowd
from benchmarks.hostile.plan import ATTACKS, FULL, QUICK, Plan
from benchmarks.hostile.stack import Stack, stack
from benchmarks.soak.machine import commit, loop_factory

RESULTS = Path(__file__).with_name("results")
WARM = 5.0  # seconds of honest streams before anything is measured
LONGEST = 1800.0  # seconds for one attack
EVERY = 0.1  # seconds between two looks at memory


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer raw cases")
    parser.add_argument(
        "--counts-only",
        action="store_true",
        help="judge failures and statuses, not time and memory",
    )
    parser.add_argument("--engine", choices=("scripted", "transformers"), default="scripted")
    parser.add_argument("--raw", type=int, help="number of raw cases")
    parser.add_argument("--attacks", default=",".join(ATTACKS), help="some of: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--logs", type=Path, help="keep the logs here")
    options = parser.parse_args()
    unknown = set(options.attacks.split(",")) - set(ATTACKS)
    if unknown:
        parser.error(f"--attacks: unknown: {', '.join(sorted(unknown))}")
    return options


def main() -> int:
    options = _options()
    # Both unwind the stack, so that every child is ended; a shell's `&` would ignore Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plan = QUICK if options.quick else FULL
    if options.raw:
        plan = replace(plan, raw=options.raw)
    if options.engine == "transformers":
        plan = replace(plan, honest=4)  # the engine computes on these cores too
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        place = options.logs or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        try:
            with (
                stack(place, options.engine) as running,
                asyncio.Runner(loop_factory=loop_factory()) as runner,
            ):
                run = runner.run(measure(plan, running, options))
        except KeyboardInterrupt:
            return 130
        except (AssertionError, RuntimeError, OSError) as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 2
    run.counts_only = options.counts_only
    kind = "quick" if options.quick else "full"
    name = kind if options.engine == "scripted" else options.engine
    return _write(run, options.out, name)


async def measure(plan: Plan, running: Stack, options: argparse.Namespace) -> report.Run:
    """The quiet time, then each attack in turn, beside honest streams all the time."""
    api = running.services["api"]
    crowd = Crowd(api.url, running.key)
    load = asyncio.create_task(crowd.run(plan.honest))
    await asyncio.sleep(WARM)
    crowd.next_phase()
    begin = time.monotonic()
    await asyncio.sleep(plan.quiet)
    phases = [report.Phase("quiet", time.monotonic() - begin, *crowd.next_phase())]
    pids = running.pids()
    quiet = {name: resident(pid) for name, pid in pids.items()}
    for name in options.attacks.split(","):
        begin = time.monotonic()
        order = {"attack": name, "plan": asdict(plan)}
        order["targets"] = [asdict(target) for target in running.targets]
        grown, attack = await _attack(order, pids, quiet)
        phases.append(
            report.Phase(name, time.monotonic() - begin, *crowd.next_phase(), grown, attack)
        )
        print(f"{name}: {phases[-1].seconds:.0f} s", file=sys.stderr)
    crowd.stopping = True
    await load
    cores, machine = os.cpu_count(), platform.machine()
    head = (
        f"{datetime.now(UTC).date().isoformat()}, {cores} cores ({machine}), shared with a load of "
        f"{os.getloadavg()[0]:.0f}; {options.engine} engine, {plan.honest} honest streams at a time; "
        f"Python {platform.python_version()}; commit {commit()}."
    )
    return report.Run(head, phases, running.tracebacks(), running.dead())


async def _attack(
    order: dict[str, Any], pids: dict[str, int], quiet: dict[str, int]
) -> tuple[dict[str, int], dict[str, Any]]:
    """Runs one attack; the most that each process grew by, and what the attack says of itself."""
    path = os.pathsep.join(str(ROOT / part) for part in ("tests", "platform"))
    attacker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.hostile.attack"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
    )
    most = dict.fromkeys(pids, 0)

    async def look() -> None:
        while True:
            for name, pid in pids.items():
                most[name] = max(most[name], resident(pid) - quiet[name])
            await asyncio.sleep(EVERY)

    looking = asyncio.create_task(look())
    try:
        async with asyncio.timeout(LONGEST):
            out, _ = await attacker.communicate(json.dumps(order).encode())
    finally:
        looking.cancel()
        if attacker.returncode is None:
            attacker.kill()
    if attacker.returncode:
        raise RuntimeError(f"the attack {order['attack']} ended with {attacker.returncode}")
    return most, json.loads(out)


def resident(pid: int) -> int:
    """Bytes of RSS; 0 for a process that has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _write(run: report.Run, out: Path, name: str) -> int:
    said = report.text(run)
    print(said)
    for phase in run.phases:
        for example in phase.attack.get("examples", []):
            print(f"not right: {example}", file=sys.stderr)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(said, encoding="utf-8")
    (out / f"{name}.json").write_text(report.as_json(run), encoding="utf-8")
    return 1 if run.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
