"""The command that starts an engine of any kind."""

from __future__ import annotations

import os
import sys

from kodolly.engines import vllm
from kodolly.engines.command import EngineCommand, EngineOptions, common_env, common_flags
from kodolly.errors import SettingsError
from kodolly.extras import require

KINDS = ("vllm", "transformers", "openai")

# Not for operators: a model's own code is never run, and other users can read a key in a command line.
RESERVED_FLAGS = frozenset({"--trust-remote-code", "--api-key"})


def engine_command(kind: str, options: EngineOptions) -> EngineCommand:
    """The command that starts an engine of this kind.

    For vLLM it runs a subprocess that looks for the installation (0.1 s, at most 20 s). Raises
    SettingsError for an unknown kind, one that is not started by us, or unusable options.
    """
    refuse_reserved(options.extra_args)
    if kind == "vllm":
        return vllm.command(options)
    if kind == "transformers":
        return transformers_command(options)
    if kind == "openai":
        raise SettingsError("engine 'openai' is a server that already runs: it has no command")
    raise SettingsError(f"unknown engine '{kind}'; choose one of {', '.join(KINDS)}")


def transformers_command(options: EngineOptions) -> EngineCommand:
    """The command for KoDolly's own engine, by default in this interpreter.

    Raises KodollyError when that is this interpreter and it has no torch.
    """
    require_engine("transformers", options.python)
    python = options.python or sys.executable
    module = "embedder" if options.pooling else "transformers"
    argv = (python, "-m", f"kodolly.engines.{module}", "--model", options.model)
    hosts = ("--allowed-hosts", *options.allowed_hosts) if options.allowed_hosts else ()
    words = (*argv, *common_flags(options), *hosts, *options.extra_args)
    # NVIDIA's driver makes this file. Importing torch to ask it for a GPU would be slow.
    on_cpu = not os.path.exists("/dev/nvidiactl")
    return EngineCommand(words, common_env(options), on_cpu=on_cpu, forces_ids=True)


def require_engine(kind: str, python: str | None) -> None:
    """Raises KodollyError for KoDolly's own engine in this interpreter, if it has no torch."""
    if kind == "transformers" and python is None:
        require("transformers")


def refuse_reserved(extra_args: tuple[str, ...]) -> None:
    """Raises SettingsError if `extra_args` has a flag that operators may not set."""
    for word in extra_args:
        flag = word.partition("=")[0].replace("_", "-")
        if flag in RESERVED_FLAGS:
            raise SettingsError(f"engine argument {flag} is not allowed here")
