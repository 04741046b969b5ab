"""What an engine is started with, and the flags and environment that all kinds share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from kodolly.engines.lora import LoraAdapter


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is started with; None leaves the choice to the engine.

    `python` is the interpreter of the engine's own environment (None: this one), `adapters` are for
    vLLM alone, `extra_args` go to the engine as they are and win over the arguments made here.
    """

    model: str
    served_model_name: str
    host: str
    port: int
    api_key: str | None = field(default=None, repr=False)
    chat_template: str | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    dtype: str = "auto"
    seed: int | None = None
    python: str | None = None
    adapters: tuple[LoraAdapter, ...] = ()
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """An engine's argv, and what its environment has over its parent's (secrets go there).

    `on_cpu`: it computes on the CPU, so CPU time is a sign that it is at work.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    on_cpu: bool = False


def common_flags(options: EngineOptions) -> list[str]:
    """The flags that vLLM and the transformers engine share, all but the model's."""
    flags = {
        "--served-model-name": options.served_model_name,
        "--host": options.host,
        "--port": options.port,
        "--dtype": options.dtype,
        "--chat-template": options.chat_template,
        "--max-model-len": options.max_model_len,
        "--max-num-seqs": options.max_num_seqs,
        "--seed": options.seed,
    }
    given = [(flag, str(value)) for flag, value in flags.items() if value is not None]
    return [word for pair in given for word in pair]


def common_env(options: EngineOptions) -> dict[str, str]:
    """Key and hub access; a key of the parent's own that nobody here would send is emptied."""
    env = {}
    if options.api_key is not None or "VLLM_API_KEY" in os.environ:
        env["VLLM_API_KEY"] = options.api_key or ""
    if os.path.isdir(options.model):
        env["HF_HUB_OFFLINE"] = "1"
    return env
