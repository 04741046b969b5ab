"""The processes of a soak: controller, API with client keys, scripted engines that register."""

import contextlib
import json
import secrets
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.processes import free_port, wait_http

from benchmarks.chaos.plan import Plan
from benchmarks.chaos.stack import ROOT, Service
from benchmarks.soak.plan import ANSWERS, ENGINES, MODEL

HOST = "127.0.0.1"
START = 60.0


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs; `keys` are those the API takes."""

    controller: Service
    api: Service
    engines: Sequence[Service]
    keys: Sequence[str]

    def answer_by(self, plan: Plan) -> None:
        """Has the engines answer by a plan's script from now on."""
        script = json.dumps(plan.script()).encode()
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for engine in self.engines:
            asked = urllib.request.Request(f"{engine.url}/scripted", script)
            with direct.open(asked, timeout=START) as answer:
                answer.read()


@contextlib.contextmanager
def stack(place: Path, keys: int, streams: int) -> Iterator[Stack]:
    """A stack that is ready for calls; everything is dead afterwards.

    The engines together take as many calls as there are clients, so that now and then one waits.
    """
    token = secrets.token_hex(16)
    env = {"KODOLLY_TOKEN": token, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    accepted = [secrets.token_hex(16) for _ in range(keys)]
    named = place / "keys"
    named.write_text("\n".join(accepted))

    def service(name: str, *words: str) -> Service:
        port = free_port()
        command = [sys.executable, "-m", *words, "--host", HOST, "--port", str(port)]
        return Service(name, command, f"http://{HOST}:{port}", env, place / f"{name}.log")

    controller = service("controller", "kodolly", "controller")
    told = ("--controller", controller.url, "--log-level", "warning")
    limit = ("--client-keys-file", str(named), "--worker-limit", str(-(-streams // ENGINES)))
    api = service("api", "kodolly", "api", *told, *limit)
    script = ("--model", MODEL, "--script", json.dumps(ANSWERS.script()))
    joined = ("--register-kodolly", controller.url, "--token", token, "--heart-beat", "1")
    engines = [
        service(f"engine-{number}", "support.scripted_engine", *script, *joined)
        for number in range(ENGINES)
    ]
    with contextlib.ExitStack() as ends:
        for one in (controller, *engines, api):
            ends.callback(one.close)
            one.start()
            if one is not api:
                one.wait()
        wait_http(api.url + "/ready", START, process=api.process)
        yield Stack(controller, api, engines, accepted)
