"""The flows of every client library against KoDolly on both engines, a bare vLLM, FastChat and LiteLLM.

    PYTHONPATH=.:tests python -m benchmarks.clients.run --write docs/clients.md
    ... --only kodolly-vllm bare-vllm     these columns alone; the others are as they were last

Needs `make model vllm-env clients-env`. What each flow said is kept in results/clients.json, and the table
between the marks of the page is made from it. FastChat is its own API server before KoDolly's worker, LiteLLM
its proxy before the bare vLLM; each is built into an environment of its own on first use.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from support.client_flows import CLIENTS, outcomes
from support.client_servers import ROOT, START, Server, Servers, servers
from support.processes import Process, free_port, wait_http
from support.tools_model import with_tools

from benchmarks.clients.report import Column, with_table
from benchmarks.gateway.environments import Unavailable, environment

MODEL = ROOT / ".kodolly" / "models" / "smollm2-135m-instruct"
PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
RESULTS = Path(__file__).parent / "results" / "clients.json"
TITLES = {
    "kodolly-transformers": "KoDolly on transformers",
    "kodolly-vllm": "KoDolly on vLLM",
    "bare-vllm": "bare vLLM 0.32",
    "fastchat": "FastChat 0.2.36",
    "litellm": "LiteLLM 1.100",
}


class Targets:
    """Starts what a column needs; a server that two columns need is started once."""

    def __init__(self, running: Servers, scratch: Path) -> None:
        self._running = running
        self._scratch = scratch
        self._started: dict[str, Server] = {}

    def server(self, column: str) -> Server:
        """The server of a column. Raises Unavailable."""
        if column not in self._started:
            start: Callable[[], Server] = getattr(self, "_" + column.replace("-", "_"))
            self._started[column] = start()
        return self._started[column]

    def _kodolly_transformers(self) -> Server:
        return self._running.transformers()

    def _kodolly_vllm(self) -> Server:
        return self._running.vllm(PYTHON)

    def _bare_vllm(self) -> Server:
        """The engine of KoDolly's worker, asked directly."""
        self.server("kodolly-vllm")
        worker = psutil.Process(self._running.workers["vllm"].pid)
        for process in worker.children(recursive=True):
            key, argv = process.environ().get("VLLM_API_KEY"), process.cmdline()
            if key and "--port" in argv:
                port = argv[argv.index("--port") + 1]
                return Server(f"http://127.0.0.1:{port}", "vllm", key)
        raise Unavailable("the engine of KoDolly's worker is not to be found")

    def _fastchat(self) -> Server:
        python = environment("fastchat") / "python"
        controller = self._running.controller("fastchat")
        worker = self._running.worker(controller, "transformers")
        port = free_port()
        argv: list[str | int | Path] = [
            python,
            "-m",
            "fastchat.serve.openai_api_server",
            "--host",
            "127.0.0.1",
        ]
        api = self._running.run(
            "fastchat-api", [*argv, "--port", port, "--controller-address", controller]
        )
        url = f"http://127.0.0.1:{port}"
        wait_http(f"{url}/v1/models", START, process=api)
        _ready(worker, controller)
        return Server(url, "transformers")

    def _litellm(self) -> Server:
        bare = self.server("bare-vllm")
        program, port = environment("litellm") / "litellm", free_port()
        served = {
            "model": f"hosted_vllm/{bare.model}",
            "api_base": f"{bare.url}/v1",
            "api_key": bare.key,
        }
        config = self._scratch / "litellm.yaml"  # JSON is YAML
        models = [{"model_name": bare.model, "litellm_params": served}]
        config.write_text(json.dumps({"model_list": models}))
        argv: list[str | int | Path] = [
            program,
            "--config",
            config,
            "--host",
            "127.0.0.1",
            "--port",
            port,
        ]
        env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
        proxy = self._running.run("litellm", [*argv, "--num_workers", 1], **env)
        wait_http(f"http://127.0.0.1:{port}/health/liveliness", START, process=proxy)
        return Server(f"http://127.0.0.1:{port}", bare.model)


def _ready(worker: Process, controller: str) -> None:
    wait_http(f"{controller}/health", START, process=worker)


@contextmanager
def targets() -> Iterator[tuple[Targets, Path]]:
    """What starts servers, and the model's directory."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = with_tools(MODEL, folder / "smollm2-tools")
        with servers(folder, model) as running:
            yield Targets(running, folder), model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--only", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--write", type=Path, help="the page whose table is to be renewed")
    options = parser.parse_args()
    results: dict[str, Column] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with targets() as (starting, model):
        for column in options.only:
            try:
                server = starting.server(column)
            except (Unavailable, AssertionError) as why:
                print(f"{column}: {why}", file=sys.stderr)
                continue
            results[column] = {}
            for client in CLIENTS:
                results[column][client.title] = outcomes(client, server, model)
                said = results[column][client.title]
                failed = [flow for flow, error in said.items() if error is not None]
                print(f"{column}: {client.title}: {len(said)} flows, failed: {failed}", flush=True)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if options.write:
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(with_table(page, TITLES, results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
