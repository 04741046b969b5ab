"""Controller, API and one worker whose agent starts vLLM, as the chaos benchmark builds them."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from benchmarks.chaos import plan as chaos
from benchmarks.chaos.network import Network
from benchmarks.chaos.stack import Worker, stack
from benchmarks.endtoend.clients import Door
from benchmarks.endtoend.plan import ENGINE, KODOLLY


@dataclass(frozen=True, slots=True)
class Doors:
    """Both ways to the same engine."""

    engine: Door
    kodolly: Door

    def of(self, way: str) -> Door:
        """The door of a way."""
        return self.engine if way == ENGINE else self.kodolly


@contextlib.contextmanager
def doors(place: Path, vllm: Path, model: Path) -> Iterator[Doors]:
    """Both ways, once the engine has made a token; everything is dead afterwards."""
    plan = replace(chaos.VLLM, workers=1, apis=1)
    with stack(plan, Network(), place, vllm, model) as running:
        worker = running.workers[0]
        command = list(worker.command)
        port = command[command.index("--engine-port") + 1]
        engine = Door(ENGINE, f"http://127.0.0.1:{port}", _key(worker))
        yield Doors(engine, Door(KODOLLY, running.apis[0].url, "any"))


def _key(worker: Worker) -> str:
    """The key that the agent gave to its engine."""
    for process in worker.engine():
        with contextlib.suppress(psutil.Error):
            if key := process.environ().get("VLLM_API_KEY"):
                return str(key)
    raise RuntimeError("the worker's engine has no key")
