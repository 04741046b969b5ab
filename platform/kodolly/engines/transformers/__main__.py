"""Starts the engine: `python -m kodolly.engines.transformers --model MODEL --port P`.

It listens at once, but /health answers 503 until the weights are loaded. SIGTERM and Ctrl-C stop it:
it refuses new requests, waits `--drain` seconds for running ones, and exits with 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path

from kodolly import logs
from kodolly.credentials import check_secret
from kodolly.engines.model_files import CONFIG, check_model_files, read_object
from kodolly.engines.transformers.engine import Engine
from kodolly.engines.transformers.hub import model_directory
from kodolly.engines.transformers.model import ModelOptions, context_length
from kodolly.engines.transformers.server import create_app
from kodolly.errors import EngineStartError, SettingsError
from kodolly.exposure import is_loopback
from kodolly.http.hosts import AllowedHosts
from kodolly.http.server import run
from kodolly.http.site_guard import SiteGuard
from kodolly.http.tls import server_context

log = logging.getLogger("kodolly.engines.transformers")

DTYPES = ("auto", "float32", "bfloat16", "float16")


def parser() -> argparse.ArgumentParser:
    """The engine's flags, with vLLM's names."""
    flags = argparse.ArgumentParser(prog="kodolly.engines.transformers", allow_abbrev=False)
    flags.add_argument("--model", required=True, metavar="MODEL", help="a directory, or a hub id")
    flags.add_argument("--served-model-name", nargs="+", metavar="NAME")
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--port", type=int, default=22002)
    flags.add_argument("--allowed-hosts", nargs="+", default=[], metavar="NAME")
    flags.add_argument("--open", action="store_true", help="serve others though no key is set")
    flags.add_argument("--max-model-len", type=_positive, metavar="TOKENS")
    flags.add_argument("--max-num-seqs", type=_positive, default=8, metavar="ROWS")
    flags.add_argument("--max-waiting", type=_positive, default=64, metavar="REQUESTS")
    flags.add_argument("--dtype", choices=DTYPES, default="auto")
    flags.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    flags.add_argument("--chat-template", type=Path, metavar="FILE")
    flags.add_argument("--seed", type=int, help="for requests without one")
    flags.add_argument("--threads", type=_positive, help="torch threads (OMP_NUM_THREADS)")
    flags.add_argument("--ssl-certfile", metavar="FILE", help="PEM certificate: speak https")
    flags.add_argument("--ssl-keyfile", metavar="FILE", help="PEM key of that certificate")
    flags.add_argument("--drain", type=float, default=10.0, metavar="SECONDS")
    flags.add_argument("--log-level", default="info", choices=("debug", "info", "warning"))
    return flags


def main(argv: Sequence[str]) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit status."""
    flags = parser().parse_args(argv)
    logs.configure(flags.log_level, "text")
    key = os.environ.get("VLLM_API_KEY")
    try:
        if key is not None:
            check_secret(key, "environment VLLM_API_KEY: the key")
        elif not flags.open and not is_loopback(flags.host):
            raise SettingsError(
                f"--host {flags.host} is reachable by others, and the engine asks for no key: set"
                " VLLM_API_KEY, or let everybody in with --open"
            )
        guard = SiteGuard(AllowedHosts(flags.allowed_hosts, flags.host))
        directory = model_directory(flags.model)
        template = _check_files(directory, flags)
        tls = server_context(flags.ssl_certfile, flags.ssl_keyfile)
    except (EngineStartError, SettingsError) as error:
        log.error("%s", error)
        return 1
    return _serve(directory, flags, template, key, guard, tls)


def _check_files(directory: Path, flags: argparse.Namespace) -> str | None:
    """Finds bad files before the slow import of torch; returns the chat template's text.

    Raises EngineStartError or SettingsError.
    """
    check_model_files(directory)
    try:
        template = flags.chat_template and flags.chat_template.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise EngineStartError(f"cannot read what the engine needs: {error}") from error
    context_length(read_object(directory / CONFIG), flags.max_model_len)
    return template or None


def _serve(
    directory: Path,
    flags: argparse.Namespace,
    template: str | None,
    key: str | None,
    guard: SiteGuard,
    tls: ssl.SSLContext | None,
) -> int:
    options = ModelOptions(
        directory=directory,
        max_model_len=flags.max_model_len,
        max_num_seqs=flags.max_num_seqs,
        dtype=flags.dtype,
        device=flags.device,
        threads=flags.threads,
    )
    engine = Engine(options, template=template, seed=flags.seed, max_waiting=flags.max_waiting)
    names = flags.served_model_name or [Path(flags.model).name]
    app = create_app(engine, names, key=key, guard=guard)
    run(
        app,
        flags.host,
        flags.port,
        # Loading starts once the server listens: if it fails, it ends the server by a signal.
        on_start=lambda: engine.start(on_failure=lambda: os.kill(os.getpid(), signal.SIGTERM)),
        on_exit=engine.close,
        drain=flags.drain,
        tls=tls,
    )
    engine.abort_all()
    if engine.failure is not None:
        log.error("%s", engine.failure)
        return 1
    log.info("stopped")
    return 0


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
