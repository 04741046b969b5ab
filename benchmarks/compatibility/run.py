"""The same requests to KoDolly on transformers, KoDolly on vLLM, and a vLLM that is attached.

    PYTHONPATH=.:tests python -m benchmarks.compatibility.run --write docs/compatibility.md
    ... --every 2          every second one of those that make tokens

Needs `make model` and `make vllm-env`. Ends with 1 if a request was ignored, or broke something.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from support.processes import Process, free_port, start, wait_http

from benchmarks.compatibility.effects import BROKEN, IGNORED, Answer, read, verdict
from benchmarks.compatibility.report import Row, page
from benchmarks.compatibility.requests import Case, all_cases, selected

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".kodolly" / "models" / "smollm2-135m-instruct"
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
ENGINES = ("transformers", "vllm", "attached")
START = 900.0  # seconds
# No proxy stands before loopback.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@contextmanager
def stack(logs: Path, model: Path, python: Path) -> Iterator[str]:
    """Controller, API and three workers; yields the API's address once all of them answer."""
    env = {"KODOLLY_TOKEN": secrets.token_hex(16), "OMP_NUM_THREADS": "1"}
    with ExitStack() as processes:

        def run(name: str, command: str, *args: str | int | Path, **more: str) -> Process:
            argv = [sys.executable, "-m", "kodolly", command, *map(str, args)]
            log = logs / f"{name}.log"
            return processes.enter_context(start(argv, env | more, cwd=ROOT, log=log))

        controller, api, engine = f"http://127.0.0.1:{free_port()}", free_port(), free_port()
        port = int(controller.rpartition(":")[2])
        wait_http(f"{controller}/health", process=run("controller", "controller", "--port", port))
        run("api", "api", "--port", api, "--controller", controller)
        common = ("--controller", controller, "--model", model, "--start-timeout", int(START))
        sizes = ("--dtype", "float32", "--max-model-len", 1024, "--max-num-seqs", 8)
        own = (*common, *sizes, "--drain-timeout", 1)
        run(
            "transformers", "worker", "--engine", "transformers", "--model-name", "transformers",
            "--port", free_port(), "--engine-port", free_port(), *own,
        )  # fmt: skip
        vllm = run(
            "vllm", "worker", "--engine", "vllm", "--engine-python", python, "--model-name", "vllm",
            "--port", free_port(), "--engine-port", engine,
            "--engine-args=--served-model-name", "--engine-args=vllm", "--engine-args=attached",
            *own,
        )  # fmt: skip
        address = f"http://127.0.0.1:{api}"
        _wait(address, {"transformers", "vllm"})
        children = psutil.Process(vllm.pid).children(recursive=True)
        key = next(filter(None, (child.environ().get("VLLM_API_KEY") for child in children)))
        run(
            "attached", "worker", "--engine", "openai", "--engine-url", f"http://127.0.0.1:{engine}",
            "--model-name", "attached", "--port", free_port(), *common,
            KODOLLY_WORKER_ENGINE_KEY=key,
        )  # fmt: skip
        _wait(address, set(ENGINES))
        yield address


def _wait(api: str, names: set[str]) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        status, content = _call(f"{api}/v1/models", None)
        if status == 200 and {model["id"] for model in json.loads(content)["data"]} >= names:
            return
        time.sleep(1)
    raise SystemExit(f"no {names} within {START:.0f} s")


def _call(url: str, body: object) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with _open(request, timeout=START) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, repr(error)


def _ask(api: str, engine: str, case: Case) -> Answer:
    return read(*_call(api + case.path, {"model": engine} | case.body))


def compare(api: str, cases: list[Case], engine: str) -> list[tuple[str, Answer]]:
    """The verdict on each case, and its answer."""
    bases = {}
    for case in all_cases():
        if case.name.endswith(": as it is"):
            bases[case.path] = _ask(api, engine, case)
    results = []
    for number, case in enumerate(cases):
        answer = _ask(api, engine, case)
        results.append((verdict(case, answer, bases[case.path]), answer))
        if number % 50 == 0:
            print(f"{engine}: {number} of {len(cases)}", flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--every", type=int, default=1, help="each so many-th that makes tokens")
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--engine-python", type=Path, default=PYTHON)
    parser.add_argument("--logs", type=Path, help="keep the logs here")
    options = parser.parse_args()
    cases = selected(options.every)
    with (
        tempfile.TemporaryDirectory() as scratch,
        stack(options.logs or Path(scratch), options.model, options.engine_python) as api,
        ThreadPoolExecutor(len(ENGINES)) as pool,
    ):
        columns = list(pool.map(lambda engine: compare(api, cases, engine), ENGINES))
    rows = [Row(case, list(results)) for case, *results in zip(cases, *columns, strict=True)]
    text = page(ENGINES, rows)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    bad = [row for row in rows if row.verdicts & {IGNORED, BROKEN}]
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
