"""Starts the engine; its flags are those of the transformers engine, where embeddings have a use for them.

It listens at once, but /health answers 503 until the weights are loaded.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from kodolly import logs
from kodolly.credentials import check_secret
from kodolly.engines.embedder.model import Encoder, Recipe
from kodolly.engines.embedder.server import Embedder, create_app
from kodolly.engines.model_files import check_model_files
from kodolly.engines.transformers.__main__ import parser
from kodolly.engines.transformers.hub import model_directory
from kodolly.engines.transformers.model import default_threads
from kodolly.errors import EngineStartError, KodollyError, SettingsError
from kodolly.exposure import is_loopback
from kodolly.http.hosts import AllowedHosts
from kodolly.http.server import run
from kodolly.http.site_guard import SiteGuard
from kodolly.http.tls import server_context

log = logging.getLogger("kodolly.engines.embedder")


def main(argv: Sequence[str]) -> int:
    """Serves until SIGTERM or Ctrl-C; returns the exit status."""
    flags = parser().parse_args(argv)
    logs.configure(flags.log_level, "text")
    key = os.environ.get("VLLM_API_KEY") or None
    try:
        if key is not None:
            check_secret(key, "environment VLLM_API_KEY: the key")
        elif not flags.open and not is_loopback(flags.host):
            raise SettingsError(
                f"--host {flags.host}: set VLLM_API_KEY, or let everybody in: --open"
            )
        guard = SiteGuard(AllowedHosts(flags.allowed_hosts, flags.host))
        directory = model_directory(flags.model)
        check_model_files(directory)
        recipe = Recipe.read(directory, flags.max_model_len)
        tls = server_context(flags.ssl_certfile, flags.ssl_keyfile)
    except (EngineStartError, SettingsError) as error:
        log.error("%s", error)
        return 1
    names = flags.served_model_name or [Path(flags.model).name]
    embedder = Embedder(names, batch=flags.max_num_seqs, max_waiting=flags.max_waiting)
    failures: list[KodollyError] = []

    def load() -> None:
        try:
            embedder.encoder = _load(directory, recipe, flags)
        except KodollyError as error:
            failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

    run(
        create_app(embedder, key=key, guard=guard),
        flags.host,
        flags.port,
        on_start=threading.Thread(target=load, daemon=True).start,
        drain=flags.drain,
        tls=tls,
    )
    for failure in failures:
        log.error("%s", failure)
    return 1 if failures else 0


def _load(directory: Path, recipe: Recipe, flags: argparse.Namespace) -> Encoder:
    import torch

    torch.set_num_threads(flags.threads or default_threads())
    device = flags.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "float32" if flags.dtype == "auto" and device == "cpu" else flags.dtype
    return Encoder(directory, recipe, dtype=dtype, device=device)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
