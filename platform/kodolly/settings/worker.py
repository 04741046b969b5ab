"""The settings of `kodolly worker`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kodolly.options import option
from kodolly.settings.common import (
    CONTROLLER_PORT,
    ENGINE_PORT,
    LOCAL,
    OPEN,
    WORKER_PORT,
    HttpSettings,
    controller_urls,
    reasoning_parser,
    runner,
    tls_cert,
    tls_key,
    tool_parser,
)


@dataclass(frozen=True)
class WorkerSettings(HttpSettings):
    """`kodolly worker`."""

    section: ClassVar[str] = "worker"
    uses_hub: ClassVar[bool] = True

    host: str = option(LOCAL, "address that the worker and its engine listen on")
    # Not 0 (any free port): others must know the port before the worker listens.
    port: int = option(WORKER_PORT, "port of the agent", minimum=1, maximum=65535)
    open: bool = option(False, OPEN)
    advertise: str | None = option(
        None,
        "address at which others reach this worker: a host name, or 'auto' for this machine's IP",
    )
    controller: str = option(
        f"http://{LOCAL}:{CONTROLLER_PORT}",
        "the controller's URL; several with commas between them, the primary first",
    )
    engine: str = option(
        "transformers",
        "server that generates the tokens",
        choices=("vllm", "transformers", "openai"),
    )
    model: str | None = option(None, "model directory (or a hub id the engine can load)")
    model_name: str | None = option(
        None,
        "name under which the model is served (default: from its model card, else the directory's"
        " name); with --engine-url, which of that server's models, with commas between them"
        " (default: all)",
    )
    conv_template: str | None = option(
        None, "conversation template (default: from the model card, else the model's chat template)"
    )
    tokenizer: str | None = option(
        None,
        "directory (or hub id) of the model's tokenizer, if --model is none that can be read here:"
        " its special tokens are guarded, so that a user cannot forge a turn",
    )
    model_aliases: tuple[str, ...] = option(
        (), "further names of the model, beside those in its card; with commas between them"
    )
    tool_parser: str | None = tool_parser()
    reasoning_parser: str | None = reasoning_parser()
    runner: str = runner()
    engine_port: int = option(ENGINE_PORT, "port of the engine process", minimum=1, maximum=65535)
    engine_url: str | None = option(
        None, "URL of a running server to attach to (with --engine openai)"
    )
    engine_key: str | None = option(None, "API key of that server", secret=True)
    adapters: tuple[str, ...] = option(
        (), "NAME=DIR: LoRA adapter, served beside the model as NAME (vLLM only); may be repeated"
    )
    engine_python: str | None = option(
        None, "Python interpreter of the environment that vLLM is installed in"
    )
    engine_args: tuple[str, ...] = option(
        (),
        "one more argument for the engine, written --engine-args=--flag; may be repeated. The"
        " variable holds all arguments, split as in a shell",
        shell=True,
    )
    gpus: str = option(
        "auto",
        "GPUs that the engine gets for itself: a number, 'none', or 'auto' (one for vLLM on CUDA)",
    )
    gpu_share: float = option(
        1.0,
        "part of a GPU that the engine gets; 0.5: two workers share one",
        minimum=0.05,
        maximum=1,
    )
    gpu_leases: str | None = option(
        None,
        "directory that all workers of this machine share, with a file for each leased GPU"
        " (default: one of this user's, among the temporary files)",
    )
    max_model_len: int | None = option(None, "context length in tokens", minimum=16)
    max_num_seqs: int | None = option(None, "most requests in a batch", minimum=1)
    dtype: str = option(
        "auto",
        "data type of weights and activations",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    seed: int | None = option(None, "the engine's seed")
    speed: int = option(1, "this worker's share of requests, relative to other workers", minimum=1)
    heart_beat_interval: float = option(1.0, "seconds between heartbeats", minimum=0.1)
    stall_after: float = option(
        3.0,
        "seconds without progress after which an engine with work gets no more requests",
        minimum=0.1,
    )
    restart_after: float = option(
        30.0, "seconds without progress after which the engine is restarted", minimum=1
    )
    canary_interval: float = option(
        15.0, "seconds between test tokens that an idle engine has to generate (0: none)", minimum=0
    )
    start_timeout: float = option(
        900.0, "seconds from the engine's start to its first token, at most", minimum=1
    )
    drain_timeout: float = option(
        60.0, "seconds that running requests may still take after SIGTERM", minimum=0
    )
    tls_cert: str | None = tls_cert()
    tls_key: str | None = tls_key()

    def controllers(self) -> tuple[str, ...]:
        """The controllers' URLs, the primary's first. Raises SettingsError."""
        return controller_urls(self.controller)
