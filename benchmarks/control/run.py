"""A thousand busy workers and ten API processes: what the controller and each of the API cost.

    python -m benchmarks.control.run            1,000 workers, 10 followers, 30 s
    python -m benchmarks.control.run --quick    the same for 6 s

Writes a table and a JSON file to benchmarks/control/results/. Exits with 1 when a target is missed,
or when a follower's table is not the controller's at the end.
"""

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from benchmarks.gateway.processes import cpu_seconds, free_port, running, wait_for_port

RESULTS = Path(__file__).with_name("results")
WARM_UP = 3.0
SETTLE = 1.5  # seconds between the last heartbeat and the comparison of the tables
LEAST_LOAD = 0.9  # of one heartbeat a second for each worker: with less, the run proves nothing
# Shares of one core.
CONTROLLER_TARGET, FOLLOWER_TARGET = 0.10, 0.01


@dataclass(frozen=True)
class Outcome:
    """CPU as shares of one core. `wrong`: followers whose table was not the workers' at the end."""

    workers: int
    followers: int
    seconds: float
    controller: float
    follower_mean: float
    follower_worst: float
    wrong: int
    beats: int  # heartbeats a second that were answered

    def meets_targets(self) -> bool:
        """Whether both targets are met, under the whole load, and every table is right."""
        cheap = self.controller < CONTROLLER_TARGET and self.follower_worst < FOLLOWER_TARGET
        return cheap and not self.wrong and self.beats >= LEAST_LOAD * self.workers


@contextlib.contextmanager
def helper(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """One of this benchmark's own processes, once it has said that it is ready."""
    command = [sys.executable, "-m", f"benchmarks.control.{module}", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            if _output(child).readline().strip() != "ready":
                raise RuntimeError(f"{module} did not start")
            yield child
        finally:
            child.kill()


def _output(child: subprocess.Popen[str]) -> IO[str]:
    assert child.stdout is not None
    return child.stdout


def _last_words(child: subprocess.Popen[str]) -> dict[str, int]:
    child.send_signal(signal.SIGTERM)
    words: dict[str, int] = json.loads(_output(child).readline())
    return words


def measure(workers: int, followers: int, seconds: float, *, warm_up: float = WARM_UP) -> Outcome:
    """Runs everything once. `warm_up`: seconds of heartbeats before the count begins."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "kodolly", "controller", "--port", str(port)]
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options = {"KODOLLY_LOG_LEVEL": "warning"}
        controller = stack.enter_context(running("controller", command, place, options))
        wait_for_port(port, controller)
        fleet = stack.enter_context(helper("workers", url, str(workers)))
        apis = [stack.enter_context(helper("follower", url)) for _ in range(followers)]
        time.sleep(warm_up)
        began = time.monotonic()
        pids = [controller.pid, *(api.pid for api in apis)]
        before = [cpu_seconds([pid]) for pid in pids]
        time.sleep(seconds)
        after = [cpu_seconds([pid]) for pid in pids]
        took = time.monotonic() - began
        words = _last_words(fleet)
        time.sleep(SETTLE)
        tables = [_last_words(api) for api in apis]
    wanted = {"workers": workers, "queues": words["queues"]}
    shares = [(b - a) / took for a, b in zip(before, after, strict=True)]
    return Outcome(
        workers,
        followers,
        took,
        shares[0],
        sum(shares[1:]) / followers,
        max(shares[1:]),
        sum(table != wanted for table in tables),
        words["beats_a_second"],
    )


def markdown(outcome: Outcome, command: str) -> str:
    """The table of the report."""
    return f"""# Control plane

`{command}`: {outcome.workers:,} workers, each with a heartbeat and another queue every second, and
{outcome.followers} API processes that follow the table, for {outcome.seconds:.0f} s. CPU in percent of one core.

| process | CPU | target |
|---|---|---|
| controller | {outcome.controller:.1%} | under {CONTROLLER_TARGET:.0%} |
| API process, mean | {outcome.follower_mean:.2%} | |
| API process, most | {outcome.follower_worst:.2%} | under {FOLLOWER_TARGET:.0%} |

Heartbeats answered: {outcome.beats:,} a second. Tables that were wrong at the end: {outcome.wrong} of {outcome.followers}.
"""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="6 s instead of 30")
    parser.add_argument("--workers", type=int, default=1000, help="default %(default)s")
    parser.add_argument("--followers", type=int, default=10, help="default %(default)s")
    parser.add_argument("--seconds", type=float, default=30.0, help="default %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    return parser.parse_args()


def main() -> int:
    """Runs, writes, and says whether the targets were met."""
    options = _options()
    outcome = measure(options.workers, options.followers, 6.0 if options.quick else options.seconds)
    arguments = " ".join(sys.argv[1:])
    text = markdown(outcome, "make bench-control" + (f" ARGS='{arguments}'" if arguments else ""))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "control.md").write_text(text, encoding="utf-8")
    (options.out / "control.json").write_text(
        json.dumps(asdict(outcome), indent=1) + "\n", encoding="utf-8"
    )
    print(text)
    return 0 if outcome.meets_targets() else 1


if __name__ == "__main__":
    sys.exit(main())
