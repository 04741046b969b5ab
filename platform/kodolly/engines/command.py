"""The options of an engine, and the flags and environment variables that all kinds share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from kodolly.engines.lora import LoraAdapter
from kodolly.engines.vllm_parsers import NO_PARSERS, Parsers


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The options of an engine. None: the engine's own default.

    `python`: interpreter of the environment that the engine is installed in (None: this one).
    `adapters`, `parsers`: only vLLM has them. `pooling`: the model makes embeddings. `allowed_hosts`: names that the transformers engine goes by.
    `tls`: files with the certificate and its key, for https. `extra_args`: go to the engine
    unchanged, after all others.
    """

    model: str
    served_model_name: str
    host: str
    port: int
    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    chat_template: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    dtype: str = "auto"
    seed: int | None = None
    python: str | None = None
    adapters: tuple[LoraAdapter, ...] = ()
    parsers: Parsers = NO_PARSERS
    pooling: bool = False
    tls: tuple[str, str | None] | None = None
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """How to start an engine. `env`: environment variables beside the parent's, secrets among them.

    `on_cpu`: it computes on the CPU, so CPU time shows whether it works. `forces_ids`: it begins an
    answer with the token ids that a request names, so that a request can be replayed there.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    on_cpu: bool = False
    forces_ids: bool = False


def common_flags(options: EngineOptions) -> list[str]:
    """The flags that vLLM and the transformers engine have in common, except the model's."""
    flags = {
        "--served-model-name": options.served_model_name,
        "--host": options.host,
        "--port": options.port,
        "--dtype": options.dtype,
        "--chat-template": options.chat_template,
        "--max-model-len": options.max_model_len,
        "--max-num-seqs": options.max_num_seqs,
        "--seed": options.seed,
        "--ssl-certfile": options.tls and options.tls[0],
        "--ssl-keyfile": options.tls and options.tls[1],
    }
    pairs = [(flag, str(value)) for flag, value in flags.items() if value is not None]
    return [word for pair in pairs for word in pair]


def common_env(options: EngineOptions) -> dict[str, str]:
    """The API key and the hub setting.

    Without a key, one that this process inherited is blanked: nobody here would send it.
    """
    env = {}
    if options.api_key is not None or "VLLM_API_KEY" in os.environ:
        env["VLLM_API_KEY"] = options.api_key or ""
    if os.path.isdir(options.model):
        env["HF_HUB_OFFLINE"] = "1"
    return env
