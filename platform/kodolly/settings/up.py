"""The settings of `kodolly up`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kodolly.options import option
from kodolly.settings.common import (
    API_PORT,
    CONTROLLER_PORT,
    EMBEDDED_MODEL,
    LOCAL,
    OPEN,
    WEB_PORT,
    WORKER_PORT,
    HttpSettings,
    reasoning_parser,
    runner,
    tls_cert,
    tls_key,
    tool_parser,
)


@dataclass(frozen=True)
class UpSettings(HttpSettings):
    """`kodolly up`: controller, workers, API and page under one supervisor."""

    section: ClassVar[str] = "up"

    home: str = option(".kodolly", "directory for models, logs and the state file")
    log_max_bytes: int = option(
        10 * 2**20,
        "bytes at which a process's log goes on in a new file; three old ones are kept",
        minimum=1024,
    )
    model: str | None = option(
        None, "model directory, or a hub id such as org/name (default: the embedded model)"
    )
    conv_template: str | None = option(
        None, "conversation template (default: from the model card, else the model's chat template)"
    )
    engine: str = option(
        "transformers", "server that generates the tokens", choices=("vllm", "transformers")
    )
    adapters: tuple[str, ...] = option(
        (), "NAME=DIR: LoRA adapter, served beside the model as NAME (vLLM only); may be repeated"
    )
    engine_python: str | None = option(
        None, "Python interpreter of the environment that vLLM is installed in"
    )
    model_aliases: tuple[str, ...] = option(
        (), "further names of the model, beside those in its card; with commas between them"
    )
    tool_parser: str | None = tool_parser()
    reasoning_parser: str | None = reasoning_parser()
    runner: str = runner()
    engine_args: tuple[str, ...] = option(
        (),
        "one more argument for every worker's engine, written --engine-args=--flag; may be repeated",
        shell=True,
    )
    workers: int = option(1, "number of workers", minimum=1, maximum=64)
    host: str = option(LOCAL, "address that page and API listen on")
    open: bool = option(False, OPEN)
    web_port: int = option(WEB_PORT, "port of the page", minimum=1, maximum=65535)
    api_port: int = option(API_PORT, "port of the API", minimum=1, maximum=65535)
    controller_port: int = option(
        CONTROLLER_PORT, "port of the controller", minimum=1, maximum=65535
    )
    worker_port: int = option(WORKER_PORT, "port of the first worker", minimum=1, maximum=65535)
    web: bool = option(True, "serve the page (--no-web: the API alone)")
    temperature: float | None = option(
        None,
        "temperature: where the page's slider starts (default: the model's own)",
        minimum=0,
        maximum=2,
    )
    tls_cert: str | None = tls_cert()
    tls_key: str | None = tls_key()

    def model_directory(self) -> Path:
        """The directory of the served model. The embedded one is copied there if it is missing."""
        return Path(self.model) if self.model else Path(self.home) / "models" / EMBEDDED_MODEL
