"""Processes of both houses: FastChat's own and ours, on free ports, each with its log."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.processes import Process, free_port, start, wait_http

TESTS = Path(__file__).resolve().parents[1]


class Town:
    """Starts processes in one folder and ends them all together.

    FastChat's write log files into the current folder, so every one runs in the town's.
    """

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self._stack = stack

    def run(
        self, module: str, *flags: str, port: int | None = None, env: dict[str, str] | None = None
    ) -> Process:
        """`python -m MODULE FLAGS`, with --host and --port where `port` is given."""
        place = ("--host", "127.0.0.1", "--port", str(port)) if port else ()
        log = self.folder / f"{module.split('.')[-1]}-{port}.log"
        argv = [sys.executable, "-m", *module.split(), *place, *flags]
        surroundings = {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"} | (env or {})
        process = start(argv, env=surroundings, cwd=self.folder, log=log)
        return self._stack.enter_context(process)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """One folder of processes for all tests of a module: starting them is what takes the time."""
    with contextlib.ExitStack() as stack:
        yield Town(tmp_path_factory.mktemp("town"), stack)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """A client that knows no proxy."""
    with httpx.Client(trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def our_door(town: Town) -> Callable[..., tuple[str, str]]:
    """Starts our controller and our API; gives the base URLs of both."""

    def open_door(token: str | None = None) -> tuple[str, str]:
        controller, api = free_port(), free_port()
        env = {"KODOLLY_TOKEN": token} if token else {}
        town.run("kodolly controller", port=controller, env=env)
        url = f"http://127.0.0.1:{controller}"
        door = town.run("kodolly api", "--controller", url, port=api, env=env)
        wait_http(f"http://127.0.0.1:{api}/health", process=door)
        return url, f"http://127.0.0.1:{api}"

    return open_door
