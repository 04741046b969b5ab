"""The command that starts an engine process, whatever its kind."""

from __future__ import annotations

import os
import sys

from kodolly.engines import vllm
from kodolly.engines.command import EngineCommand, EngineOptions, common_env, common_flags
from kodolly.errors import SettingsError
from kodolly.extras import require

KINDS = ("vllm", "transformers", "openai")

# Ours to decide: remote code is never run, and a key in argv is readable by every local user.
RESERVED_FLAGS = frozenset({"--trust-remote-code", "--api-key"})


def engine_command(kind: str, options: EngineOptions) -> EngineCommand:
    """The command that starts an engine of this kind.

    May run a short subprocess to look at the engine's environment (at most some seconds).
    Raises SettingsError for an unknown kind, one that is not started here, or unusable options.
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
    """KoDolly's own engine, run with this interpreter unless another is named.

    Raises KodollyError when that is this interpreter and it has no torch.
    """
    if options.python is None:
        require("transformers")
    python = options.python or sys.executable
    argv = (python, "-m", "kodolly.engines.transformers", "--model", options.model)
    words = (*argv, *common_flags(options), *options.extra_args)
    # torch is not imported here to be asked; where it finds a GPU, NVIDIA's driver has this file.
    return EngineCommand(words, common_env(options), on_cpu=not os.path.exists("/dev/nvidiactl"))


def refuse_reserved(extra_args: tuple[str, ...]) -> None:
    """Raise SettingsError if extra arguments hold a flag that is not the operator's to give."""
    for word in extra_args:
        flag = word.partition("=")[0].replace("_", "-")
        if flag in RESERVED_FLAGS:
            raise SettingsError(f"engine argument {flag} is not allowed here")
