"""The same fault at other gateways: an engine is killed (SIGKILL) in the middle of the streams it makes.

    PYTHONPATH=tests .venv/bin/python -m benchmarks.chaos.rivals --environments DIR

DIR has an environment for each gateway: smg/, vllm-router/, dynamo/ (`python -m venv`, then `pip install smg`,
`vllm-router`, `ai-dynamo`), and production-stack/, whose router is in no registry: its requirements are those of
benchmarks/gateway, its source lies in src/, the commit in src/VERSION. What is not there is named and left out; KoDolly is always measured. Before all but
Dynamo stand the same scripted engines, which speak OpenAI's API. Dynamo's workers speak a protocol of its own, so
its own mocker stands there, whose tokens are random: of its streams only the number of tokens is judged.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from support.processes import free_port, wait_http
from support.script import Script, chat_prompt

from benchmarks.chaos.asks import SCHEMA
from benchmarks.chaos.plan import MODEL
from benchmarks.chaos.report import table
from benchmarks.chaos.run import SMOLLM2
from benchmarks.chaos.stack import ROOT, Service

STREAMS, TOKENS, PACE = 20, 100, 0.05  # of each kind; seconds a token
KILL_AFTER = 2.0  # seconds after the streams began: about 40 tokens
SILENCE = 60.0  # seconds
START = 120.0
ENGINES = 2
HOST = "127.0.0.1"
RESULTS = Path(__file__).with_name("results")
SCRIPT: dict[str, Any] = {"numbered": True, "length": 400, "token_delay": PACE, "first_delay": PACE}
KINDS: dict[str, dict[str, Any]] = {"plain": {}, "with a schema": SCHEMA}


class Missing(Exception):
    """A gateway is not installed, or does not start; the text says why."""


@dataclass(slots=True)
class Stack:
    """A gateway that serves, and its engines."""

    url: str
    engines: list[Service]
    is_scripted: bool = True


@dataclass(slots=True)
class Counts:
    """Streams by how they came out. `silence`: the longest of any whole one, in seconds."""

    whole: int = 0
    broken: int = 0
    wrong: int = 0  # it ended as if all were well, with another text
    silence: float = 0.0
    errors: list[str] = field(default_factory=list)
    messages: set[str] = field(default_factory=set)  # of error events


@contextlib.contextmanager
def started(services: Sequence[Service]) -> Iterator[None]:
    """All run; all are dead afterwards."""
    with contextlib.ExitStack() as ends:
        for service in services:
            ends.callback(service.close)
            service.start()
        yield


def service(name: str, place: Path, port: int, command: Sequence[object], **env: str) -> Service:
    """A process that writes its log into `place`."""
    words = [str(word) for word in command]
    url = f"http://{HOST}:{port}"
    return Service(name, words, url, env | {"NO_PROXY": "*"}, place / f"{name}.log")


def engines(place: Path, *more: str) -> list[Service]:
    """Scripted engines."""
    made = []
    for number in range(ENGINES):
        port = free_port()
        command = [sys.executable, "-m", "support.scripted_engine", "--port", port]
        command += ["--model", MODEL, "--script", json.dumps(SCRIPT), *more]
        path = str(ROOT / "tests")
        made.append(service(f"engine-{number}", place, port, command, PYTHONPATH=path))
    return made


@contextlib.contextmanager
def kodolly(place: Path, _: Path) -> Iterator[Stack]:
    """This project: controller, API, engines that register."""
    ports = [free_port(), free_port()]
    command = [sys.executable, "-m", "kodolly"]
    controller = service(
        "controller", place, ports[0], [*command, "controller", "--port", ports[0]]
    )
    words = [*command, "api", "--port", ports[1], "--controller", controller.url]
    api = service("api", place, ports[1], [*words, "--store", "none"])
    with started([controller]):
        controller.wait()
        joined = ("--register-kodolly", controller.url, "--heart-beat", "1")
        own = engines(place, *joined)
        with started([*own, api]):
            wait_http(f"{api.url}/ready", START, process=api.process)
            yield Stack(api.url, own)


@contextlib.contextmanager
def before_engines(gateway: Service, own: list[Service]) -> Iterator[Stack]:
    """The engines first, then a gateway that has their URLs on its command line."""
    with started(own):
        for engine in own:
            engine.wait()
        with started([gateway]):
            answers(gateway)
            yield Stack(gateway.url, own)


def router(name: str, program: str, *words: str) -> Callable[[Path, Path], Any]:
    """A router that is told the engines' URLs."""

    @contextlib.contextmanager
    def run(place: Path, home: Path) -> Iterator[Stack]:
        own = engines(place)
        port = free_port()
        urls = [engine.url for engine in own]
        command = [home / "bin" / program, *words, "--host", HOST, "--port", port]
        command += ["--worker-urls", *urls, "--policy", "round_robin"]
        command += ["--prometheus-port", free_port()]
        gateway = service(name, place, port, command)
        with before_engines(gateway, own) as stack:
            yield stack

    return run


@contextlib.contextmanager
def dynamo(place: Path, home: Path) -> Iterator[Stack]:
    """Dynamo's frontend and mockers, over files and TCP: neither etcd nor NATS."""
    if not (SMOLLM2 / "tokenizer.json").is_file():
        raise Missing(f"it needs a tokenizer: no {SMOLLM2.name}; `make model` fetches it")
    env = {"DYN_FILE_KV": str(place / "kv"), "HF_HUB_OFFLINE": "1"}
    planes = ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]
    python = home / "bin" / "python"
    port = free_port()
    command = [python, "-m", "dynamo.frontend", "--http-host", HOST, "--http-port", port, *planes]
    frontend = service("frontend", place, port, [*command, "--migration-limit", "3"], **env)
    own = []
    for number in range(ENGINES):
        command = [python, "-m", "dynamo.mocker", "--model-path", SMOLLM2, "--model-name", MODEL]
        command += [*planes, "--decode-speedup-ratio", DYNAMO_SPEED]
        own.append(service(f"mocker-{number}", place, 0, command, **env))
    with started([frontend, *own]):
        answers(frontend)
        yield Stack(frontend.url, own, is_scripted=False)


@contextlib.contextmanager
def production_stack(place: Path, home: Path) -> Iterator[Stack]:
    """The Python router of vLLM's production-stack: no registry has it, so its src/ lies in the environment."""
    if not (home / "src" / "vllm_router" / "app.py").is_file():
        raise Missing(
            f"no {home.name}/src/vllm_router: it is in no registry, unpack its source there"
        )
    own = engines(place)
    port = free_port()
    command = [home / "bin" / "python", "-m", "vllm_router.app", "--host", HOST, "--port", port]
    command += ["--service-discovery", "static", "--routing-logic", "roundrobin"]
    command += ["--static-backends", ",".join(engine.url for engine in own)]
    command += ["--static-models", ",".join([MODEL] * len(own))]
    gateway = service("router", place, port, command, PYTHONPATH=str(home / "src"))
    with before_engines(gateway, own) as stack:
        yield stack


DYNAMO_SPEED = 0.2  # its mocker's own pace, slowed down to about PACE
# Name -> its package, and how it is run.
GATEWAYS: dict[str, tuple[str, Callable[[Path, Path], Any]]] = {
    "KoDolly": ("kodolly", kodolly),
    "SMG": ("smg", router("smg", "smg", "launch")),
    "vllm-router": ("vllm-router", router("vllm-router", "vllm-router")),
    "production-stack": ("production-stack", production_stack),
    "Dynamo": ("ai-dynamo", dynamo),
}


def answers(gateway: Service) -> None:
    """Waits until short chats are answered, several in a row. Raises Missing."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "?"}], "max_tokens": 2}
    command = ["curl", "-sf", "-m", "20", f"{gateway.url}/v1/chat/completions"]
    command += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    deadline, well = time.monotonic() + START, 0
    while time.monotonic() < deadline and well < 2 * ENGINES:
        if not gateway.running:
            raise Missing(f"it ended at its start: {gateway.log.read_text()[-300:]}")
        process = subprocess.run(command, capture_output=True, check=False)
        well = well + 1 if process.returncode == 0 else 0
        time.sleep(0.1 if well else 0.5)
    if well < 2 * ENGINES:
        raise Missing(f"it answered nothing in {START:.0f} s: {gateway.log.read_text()[-300:]}")


def version(package: str, home: Path | None) -> str:
    """Of a package in an environment. Raises Missing."""
    python = Path(sys.executable) if home is None else home / "bin" / "python"
    if home is not None and (home / "src").is_dir():
        return (home / "src" / "VERSION").read_text().strip()
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    if not python.exists():
        raise Missing(f"no environment {python.parents[1].name}/")
    process = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if process.returncode:
        raise Missing(f"{package} is not installed in {python.parents[1].name}/")
    return process.stdout.strip()


async def measure(stack: Stack) -> dict[str, Counts]:
    """All streams at once; in the middle one engine is killed."""
    counts = {kind: Counts() for kind in KINDS}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        tasks = [
            asyncio.create_task(_stream(http, stack, number, kind, counts[kind]))
            for kind in KINDS
            for number in range(STREAMS)
        ]
        await asyncio.sleep(KILL_AFTER)
        await asyncio.to_thread(stack.engines[0].kill)
        await asyncio.gather(*tasks)
    return counts


async def _stream(
    http: aiohttp.ClientSession, stack: Stack, number: int, kind: str, counts: Counts
) -> None:
    messages = [{"role": "user", "content": f"{number}번째 {kind} 질문"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": TOKENS, "stream": True}
    body |= {"temperature": 0, "stream_options": {"include_usage": True}} | KINDS[kind]
    if not stack.is_scripted:
        body["ignore_eos"] = True
    text, usage, is_done, error = "", 0, False, ""
    last, silence = time.monotonic(), 0.0
    try:
        async with http.post(f"{stack.url}/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                error = f"status {answer.status}: {(await answer.text())[:80]}"
            async for line in answer.content:
                now = time.monotonic()
                silence, last = max(silence, now - last), now
                is_done = is_done or line.strip() == b"data: [DONE]"
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    error = "error event"
                    counts.messages.add(str(event["error"])[:200])
                for choice in event.get("choices") or ():
                    text += (choice.get("delta") or {}).get("content") or ""
                usage = (event.get("usage") or {}).get("completion_tokens") or usage
    except (aiohttp.ClientError, TimeoutError) as failure:
        error = type(failure).__name__
    if error or not is_done:
        counts.broken += 1
        counts.errors.append(error or "cut off")
    elif usage != TOKENS if not stack.is_scripted else text != _expected(messages):
        counts.wrong += 1
    else:
        counts.whole += 1
        counts.silence = max(counts.silence, silence)


def _expected(messages: list[dict[str, str]]) -> str:
    script = Script(model=MODEL)
    for name, value in SCRIPT.items():
        setattr(script, name, value)
    return script.answer(TOKENS, prompt=script.encode(chat_prompt({"messages": messages}))).text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--environments", type=Path, required=True, help="where they are installed")
    parser.add_argument("--only", help=f"some of: {', '.join(GATEWAYS)}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the table goes")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    chosen = options.only.split(",") if options.only else list(GATEWAYS)
    if unknown := set(chosen) - GATEWAYS.keys():
        parser.error(f"--only: unknown: {', '.join(sorted(unknown))}")
    rows, missing = [], []
    for name in chosen:
        package, run = GATEWAYS[name]
        home = options.environments.resolve() / (package.removeprefix("ai-"))
        try:
            number = version(package, None if name == "KoDolly" else home)
            with (
                tempfile.TemporaryDirectory(prefix="rivals-") as place,
                run(Path(place), home) as own,
            ):
                counts = asyncio.run(measure(own))
        except (Missing, AssertionError) as failure:
            missing.append(f"Not measured: {name}: {failure}")
            continue
        rows += [_row(f"{name} {number}", kind, each) for kind, each in counts.items()]
        for kind, each in counts.items():
            for message in sorted(each.messages):
                print(f"{name}, {kind}: {message}", file=sys.stderr)
    names = [
        "gateway",
        "streams",
        "whole",
        "broken",
        "another text",
        "longest silence of a whole one",
    ]
    head = (
        f"{datetime.now(UTC).date().isoformat()}, {os.cpu_count()} cores, shared; {ENGINES} engines, "
        f"{STREAMS} streams of each kind at a time, {TOKENS} tokens each; one engine killed once."
    )
    text = "\n".join([head, "", *table(names, rows), "", *missing, ""])
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rivals.md").write_text(text, encoding="utf-8")
    return 0


def _row(name: str, kind: str, counts: Counts) -> tuple[str, ...]:
    why = f" ({', '.join(sorted(set(counts.errors)))})" if counts.errors else ""
    figures = (counts.whole, f"{counts.broken}{why}", counts.wrong, f"{counts.silence:.1f} s")
    return (name, kind, *map(str, figures))


if __name__ == "__main__":
    sys.exit(main())
