"""A batch beside live traffic: what it costs the live requests, and whether two kills lose anything of it.

    make bench-batch                  1,000 requests in the batch, some minutes
    make bench-batch ARGS=--quick     200 requests, about a minute

Live clients ask all the time: before the batch, beside it, while the process that runs it is killed twice, and
after it. Prints the figures, writes them to benchmarks/batch/results/; ends with 1 if a request of the batch was
lost, doubled or wrong, if a live one failed without a kill, or if first tokens came later than they may.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from support.processes import free_port

from benchmarks.batch import report
from benchmarks.batch.job import Job, judge, sent_again
from benchmarks.batch.live import Crowd
from benchmarks.batch.plan import APIS, ENGINES, FULL, KILLS, MODEL, QUICK, SCRIPT, Plan
from benchmarks.chaos.stack import ROOT, Service
from benchmarks.soak.machine import commit, loop_factory

HOST = "127.0.0.1"
START = 90.0  # seconds
WARM = 5.0  # seconds of live traffic before anything is measured
RESULTS = Path(__file__).with_name("results")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="a smaller batch")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--logs", type=Path, help="keep logs and journals here")
    options = parser.parse_args()
    # Both unwind the stack, so that every child is ended; a shell's `&` would ignore Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plan = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="batch-") as scratch:
        place = options.logs or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        try:
            with (
                stack(place) as apis,
                asyncio.Runner(loop_factory=loop_factory()) as runner,
            ):
                run = runner.run(measure(plan, apis, place))
        except KeyboardInterrupt:
            return 130
        except (AssertionError, RuntimeError, OSError) as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 2
    text = report.text(run)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "quick" if options.quick else "full"
    (options.out / f"{name}.md").write_text(text, encoding="utf-8")
    (options.out / f"{name}.json").write_text(report.as_json(run), encoding="utf-8")
    return 1 if run.faults() else 0


@contextlib.contextmanager
def stack(place: Path) -> Iterator[list[Service]]:
    """The API processes, on one store, before scripted engines; everything is dead afterwards."""
    env = {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}

    def service(name: str, *words: str) -> Service:
        port = free_port()
        command = [sys.executable, "-m", *words, "--host", HOST, "--port", str(port)]
        return Service(name, command, f"http://{HOST}:{port}", env, place / f"{name}.log")

    controller = service("controller", "kodolly", "controller")
    script = ("--model", MODEL, "--script", json.dumps(SCRIPT))
    joined = ("--register-kodolly", controller.url, "--heart-beat", "1")
    engines = [
        service(
            f"engine-{number}",
            *("support.scripted_engine", *script, *joined),
            *("--journal", str(place / f"engine-{number}.journal")),
        )
        for number in range(ENGINES)
    ]
    store = f"sqlite:///{place.resolve() / 'store.sqlite3'}"
    words = ("kodolly", "api", "--controller", controller.url, "--store", store)
    apis = [service(f"api-{number}", *words) for number in range(APIS)]
    with contextlib.ExitStack() as ends:
        for one in (controller, *engines, *apis):
            ends.callback(one.close)
            one.start()
            one.wait("/ready" if one in apis else "/health", START)
        yield apis


async def measure(plan: Plan, apis: list[Service], place: Path) -> report.Run:
    """Live traffic through all phases, and the batch through two kills."""
    crowd = Crowd([api.url for api in apis])
    load = asyncio.create_task(crowd.run(plan.clients))
    async with aiohttp.ClientSession() as http:
        await asyncio.sleep(WARM)
        crowd.phase = report.BEFORE
        await asyncio.sleep(plan.quiet)
        job = Job(http, crowd.doors, plan.requests)
        await job.start()
        crowd.phase, begin = report.WITH, time.monotonic()
        done = await job.answered(KILLS[0])
        pace = done / (time.monotonic() - begin)
        crowd.phase = report.KILLED
        await asyncio.to_thread(apis[0].kill)
        # Nobody but the second process can take it over until the first is started again.
        await job.answered((done + 1) / plan.requests)
        apis[0].start()
        left = plan.requests - await job.answered(KILLS[1])
        await asyncio.to_thread(apis[1].kill)
        apis[1].start()
        for api in apis:
            await asyncio.to_thread(api.wait, "/ready", START)
        state = await job.ended()
        verdict = judge(job.bodies, await job.lines(state))
        journals = [place / f"engine-{number}.journal" for number in range(ENGINES)]
        verdict.sent_again = sent_again(journals, job.id)
        await asyncio.sleep(WARM)
        crowd.phase = report.AFTER
        await asyncio.sleep(plan.quiet)
    crowd.is_stopping = True
    await load
    cores, machine = os.cpu_count(), platform.machine()
    head = (
        f"{datetime.now(UTC).date().isoformat()}, {cores} cores ({machine}), shared and noisy; "
        f"{ENGINES} scripted engines, {APIS} API processes on a SQLite file, {plan.clients} live "
        f"clients, {plan.requests:,} requests in the batch; commit {commit()}."
    )
    return report.Run(
        head, dict(crowd.first_tokens), dict(crowd.failures), verdict, state["status"], pace, left
    )


if __name__ == "__main__":
    sys.exit(main())
