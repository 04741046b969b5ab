"""The command that starts an engine process, whatever its kind."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from kodolly.engines.lora import LoraAdapter
from kodolly.errors import SettingsError

KINDS = ("vllm", "transformers", "openai")

# Ours to decide: remote code is never run, and a key in argv is readable by every local user.
RESERVED_FLAGS = frozenset({"--trust-remote-code", "--api-key"})


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


def engine_command(kind: str, options: EngineOptions) -> EngineCommand:
    """The command that starts an engine of this kind.

    May run a short subprocess to look at the engine's environment (at most some seconds).
    Raises SettingsError for an unknown kind, one that is not started here, or unusable options.
    """
    refuse_reserved(options.extra_args)
    if kind == "vllm":
        from kodolly.engines import vllm

        return vllm.command(options)
    if kind == "transformers":
        return transformers_command(options)
    if kind == "openai":
        raise SettingsError("engine 'openai' is a server that already runs: it has no command")
    raise SettingsError(f"unknown engine '{kind}'; choose one of {', '.join(KINDS)}")


def transformers_command(options: EngineOptions) -> EngineCommand:
    """KoDolly's own engine, run with this interpreter unless another is named."""
    python = options.python or sys.executable
    argv = (python, "-m", "kodolly.engines.transformers", "--model", options.model)
    words = (*argv, *common_flags(options), *options.extra_args)
    # torch is not imported here to be asked; where it finds a GPU, NVIDIA's driver has this file.
    return EngineCommand(words, common_env(options), on_cpu=not os.path.exists("/dev/nvidiactl"))


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


def refuse_reserved(extra_args: tuple[str, ...]) -> None:
    """Raise SettingsError if extra arguments hold a flag that is not the operator's to give."""
    for word in extra_args:
        flag = word.partition("=")[0].replace("_", "-")
        if flag in RESERVED_FLAGS:
            raise SettingsError(f"engine argument {flag} is not allowed here")
