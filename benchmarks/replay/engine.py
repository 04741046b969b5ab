"""A real vLLM, started by the command with which a worker starts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.processes import free_port, start, wait_http

from benchmarks.replay.requests import MODEL
from kodolly.engines.command import EngineOptions
from kodolly.engines.start import engine_command

START = 900.0  # seconds, on a machine that has other work
SLOTS = 16


@contextmanager
def engine(model: Path, python: Path, dtype: str, log: Path) -> Iterator[str]:
    """The address of an engine that has made its first token."""
    port = free_port()
    options = EngineOptions(
        model=str(model),
        served_model_name=MODEL,
        host="127.0.0.1",
        port=port,
        max_model_len=1024,
        max_num_seqs=SLOTS,
        dtype=dtype,
        python=str(python),
        extra_args=("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    )
    command = engine_command("vllm", options)
    with start(command.argv, dict(command.env), cwd=Path.cwd(), log=log) as process:
        url = f"http://127.0.0.1:{port}"
        wait_http(url + "/health", START, process=process)
        yield url
