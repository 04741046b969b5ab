"""`kodolly doctor`: checks this machine, and says what is missing and how to get it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kodolly.engines.transformers.hub import is_hub_id
from kodolly.errors import SettingsError
from kodolly.extras import MODULES, install_command, missing_modules
from kodolly.logs import escape_controls
from kodolly.settings import UpSettings, load
from kodolly.supervisor import plan
from kodolly.supervisor.app import check_ports

GIB = 2**30
NEEDED_DISK, NEEDED_MEMORY = 3 * GIB, 3 * GIB
PROBE_TIMEOUT = 20.0  # seconds for nvidia-smi or another Python


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was checked, the result, and what to do about it (`cure`)."""

    mark: Literal["ok", "note", "missing"]
    subject: str
    text: str
    cure: str = ""


def python(_: UpSettings) -> Finding:
    """This Python's version."""
    return Finding("ok", "python", ".".join(map(str, sys.version_info[:3])))


def gpu(_: UpSettings) -> Finding:
    """NVIDIA's driver, for vLLM on a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("note", "gpu", "none found", "the CPU is used: small models only")
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        result = subprocess.run(
            query, capture_output=True, text=True, timeout=PROBE_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("note", "gpu", f"nvidia-smi fails: {error}", "check the NVIDIA driver")
    if result.returncode != 0:
        return Finding("note", "gpu", "nvidia-smi fails", "check the NVIDIA driver")
    return Finding("ok", "gpu", "; ".join(result.stdout.strip().splitlines()))


def vllm(settings: UpSettings) -> Finding:
    """vLLM, in the environment of the engine or in this one."""
    interpreter = settings.engine_python or _local_vllm() or sys.executable
    probe = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"
    try:
        result = subprocess.run(
            [interpreter, "-c", probe], capture_output=True, timeout=PROBE_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("missing", "vllm", f"{interpreter}: {error}", "check --engine-python")
    if result.returncode == 0:
        return Finding("ok", "vllm", f"found by {interpreter}")
    text = f"not found by {interpreter}"
    if settings.engine == "vllm":
        cure = "check --engine-python; `make vllm-env` installs a CPU build"
        return Finding("missing", "vllm", text, cure)
    cure = "the transformers engine is used; `make vllm-env` installs a CPU build"
    return Finding("note", "vllm", text, cure)


def packages(_: UpSettings) -> Finding:
    """The packages of the extras `transformers` and `web`."""
    absent = missing_modules(MODULES)
    if not absent:
        return Finding("ok", "packages", "torch, transformers and gradio are installed")
    return Finding(
        "missing", "packages", f"extras {','.join(sorted(absent))}", install_command(absent)
    )


def disk(settings: UpSettings) -> Finding:
    """Free disk space for models and logs."""
    place = Path(settings.home).resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{free / GIB:.1f} GiB free at {place}"
    if free >= NEEDED_DISK:
        return Finding("ok", "disk", text)
    return Finding(
        "missing", "disk", text, f"free {NEEDED_DISK // GIB} GiB, or set --home elsewhere"
    )


def memory(_: UpSettings) -> Finding:
    """Memory for the embedded model."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / GIB:.1f} GiB"
    if total >= NEEDED_MEMORY:
        return Finding("ok", "memory", text)
    return Finding("note", "memory", text, "the embedded model needs about 2 GiB for itself")


def free_ports(settings: UpSettings) -> Finding:
    """The ports `kodolly up` would listen on."""
    try:
        check_ports(settings)
    except SettingsError as error:
        return Finding("missing", "ports", str(error), "or leave it if KoDolly already runs there")
    ports = sorted(listener.port for listener in plan.listeners(settings))
    numbers = ", ".join(map(str, ports))
    return Finding("ok", "ports", f"{numbers} are free")


def model(settings: UpSettings) -> Finding:
    """The model `kodolly up` would serve."""
    directory = settings.model_directory()
    if (directory / "config.json").is_file():
        return Finding("ok", "model", str(directory))
    if settings.model is None:
        return Finding(
            "note", "model", "not there yet", "`kodolly up` copies the embedded one once"
        )
    if is_hub_id(settings.model):
        return Finding("note", "model", settings.model, "no folder here: it is taken from the hub")
    return Finding("missing", "model", f"no {directory}/config.json", "check --model")


CHECKS: Sequence[Callable[[UpSettings], Finding]] = (
    python,
    packages,
    gpu,
    vllm,
    disk,
    memory,
    free_ports,
    model,
)


def _local_vllm() -> str | None:
    """The interpreter in the environment that `make vllm-env` creates, if there is one."""
    interpreter = Path(".venv-vllm/bin/python")
    return str(interpreter) if interpreter.is_file() else None


def main(argv: Sequence[str]) -> int:
    """Prints the report; returns 1 if something necessary is missing."""
    settings = load(
        UpSettings, argv, "Check this machine: what is missing, and what to do.", name="doctor"
    )
    findings = [check(settings) for check in CHECKS]
    for finding in findings:
        cure = f"  -> {finding.cure}" if finding.cure else ""
        line = f"{finding.mark:<8}{finding.subject:<10}{finding.text}{cure}"
        sys.stdout.write(f"{escape_controls(line)}\n")
    return int(any(finding.mark == "missing" for finding in findings))
