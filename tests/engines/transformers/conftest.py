"""Tiny models, made once, and one engine process that serves a tiny LLaMA."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.processes import free_port
from support.tiny_models import make_tiny_llama, make_tiny_neox
from support.tool_template import TEMPLATE

NAME = "tiny"
START = 300.0  # seconds at most until a loaded machine has imported torch


@dataclass(slots=True)
class EngineProcess:
    """A started engine: its address, its process and the file its log goes to."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    key: str = ""

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)

    async def metric(self, name: str) -> float:
        """One number of /metrics."""
        text = await asyncio.to_thread(get, self.url + "/metrics", self.key)
        row = next(
            line for line in text.splitlines() if line.startswith(f"kodolly_engine_{name}{{")
        )
        return float(row.rsplit(" ", 1)[1])


def get(url: str, key: str) -> str:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def status(url: str) -> int | None:
    """The status of a GET, or None when nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return None


HOSTS = ("--allowed-hosts", "engine.box")
Start = Callable[..., EngineProcess]


@pytest.fixture(scope="session")
def neox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_neox(tmp_path_factory.mktemp("models") / "neox")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts engine processes and ends those that are left."""
    started: list[EngineProcess] = []

    def begin(model: Path, *flags: str, key: str = "") -> EngineProcess:
        port = free_port()
        log = tmp_path_factory.mktemp("log") / "engine.log"
        command = [sys.executable, "-m", "kodolly.engines.transformers", "--model", str(model)]
        command += ["--served-model-name", NAME, "--port", str(port), "--threads", "1", *flags]
        env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"VLLM_API_KEY": key} if key else {})
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
        started.append(EngineProcess(f"http://127.0.0.1:{port}", process, log, key))
        return started[-1]

    yield begin
    for engine in started:
        if engine.process.poll() is None:
            engine.process.kill()
        engine.process.wait(timeout=30)


def healths_until_ready(engine: EngineProcess) -> list[int]:
    """The statuses of /health until it is 200; fails with the log when the process ends first."""
    deadline, seen = time.monotonic() + START, [0]
    while seen[-1] != 200:
        assert engine.process.poll() is None, engine.log.read_text()
        assert time.monotonic() < deadline, engine.log.read_text()
        if (code := status(engine.url + "/health")) is not None:
            seen.append(code)
        time.sleep(0.05)
    return seen[1:]


@pytest.fixture(scope="session")
def engine(start: Start, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineProcess:
    """A ready engine with the tiny LLaMA and a chat template that has a place for tools."""
    template = tmp_path_factory.mktemp("template") / "tools.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    flags = ("--max-num-seqs", "4", "--max-waiting", "4", "--chat-template", str(template))
    engine = start(llama, *flags, *HOSTS, key="secret")
    healths_until_ready(engine)
    return engine


@pytest.fixture
def generate() -> Callable[[Path, list[int], int], list[int]]:
    """transformers' own greedy tokens after a prompt: what ours must equal."""

    def run(directory: Path, prompt: list[int], count: int) -> list[int]:
        import torch
        from transformers import AutoModelForCausalLM

        network: Any = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32)
        made = network.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
        )
        return [int(token) for token in made[0, len(prompt) :]]

    return run
