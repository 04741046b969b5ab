"""`kodolly doctor`: checks this machine, and says what is missing and how to get it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from kodolly import surroundings
from kodolly.engines.model_files import check_model_files
from kodolly.engines.transformers.hub import is_hub_id
from kodolly.errors import SettingsError
from kodolly.extras import MODULES, install_command, missing_modules
from kodolly.logs import escape_controls
from kodolly.options import resolve
from kodolly.settings import SECTIONS, UpSettings, WorkerSettings, load
from kodolly.supervisor import plan
from kodolly.supervisor.app import check_ports

GIB = 2**30
NEEDED_DISK, NEEDED_MEMORY = 3 * GIB, 3 * GIB
PROBE_TIMEOUT = 20.0  # seconds for nvidia-smi, docker or another Python
NO_ENGINE = "not needed: no engine runs in this container"
MIN_DOCKER, MIN_COMPOSE = (25,), (2, 20)


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


def place(_: UpSettings) -> Finding:
    """In a container or not, and its limits of cores and processes."""
    inside = surroundings.container()
    limits = [f"{inside or 'no'} container"]
    if (cores := surroundings.cpu_limit()) is not None:
        limits.append(f"{cores:g} cores")
    if (pids := surroundings.pids_limit()) is not None:
        limits.append(f"{pids} processes and threads")
    cure = "" if inside is None else "listen on 0.0.0.0 there, and publish the port on the machine"
    if surroundings.is_own_image():
        limits.append("one of KoDolly's images, which runs one process")
        cure = ""
    return Finding("note" if cure else "ok", "place", ", ".join(limits), cure)


def gpu(settings: UpSettings) -> Finding:
    """NVIDIA's driver, for vLLM on a GPU, and whether a container sees the devices."""
    if not _runs_engine():
        return Finding("ok", "gpu", NO_ENGINE)
    tool = shutil.which("nvidia-smi")
    if tool is None:
        cure = "the CPU is used: small models only"
        if surroundings.container():
            cure += (
                "; a container sees a GPU only when it is started with it (--gpus, --profile gpu)"
            )
        return Finding("note", "gpu", "none found", cure)
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    status, text = _output(query)
    if status != 0:
        return Finding("note", "gpu", f"nvidia-smi fails: {text}", "check the NVIDIA driver")
    if not text:
        return Finding("note", "gpu", "nvidia-smi lists none", "check the NVIDIA driver")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        cure = "unset CUDA_VISIBLE_DEVICES, or name a GPU in it"
        return Finding("note", "gpu", "hidden by CUDA_VISIBLE_DEVICES", cure)
    shown = "; ".join(text.splitlines())
    if settings.engine == "transformers" and _torch_is_for_cpu():
        cure = "install torch's CUDA build, or use --engine vllm"
        return Finding("note", "gpu", f"{shown}, but the torch here is a build for CPUs", cure)
    return Finding("ok", "gpu", shown)


def docker(_: UpSettings) -> Finding:
    """A Docker engine with Compose, for `docker compose up`. `kodolly up` needs neither."""
    if surroundings.is_own_image():
        return Finding("ok", "docker", "not needed inside a container")
    if shutil.which("docker") is None:
        return Finding("note", "docker", "not installed", "only `docker compose up` needs it")
    status, text = _output(["docker", "version", "--format", "{{.Server.Version}}"])
    if status != 0:
        cure = "start the engine; your user must be allowed to reach it (group docker)"
        return Finding("note", "docker", f"no engine answers: {text}", cure)
    status, compose = _output(["docker", "compose", "version", "--short"])
    if status != 0:
        return Finding("note", "docker", f"{text} without Compose", "install its Compose plugin")
    shown = f"engine {text}, Compose {compose}"
    if _number(text) < MIN_DOCKER or _number(compose) < MIN_COMPOSE:
        needed = "Docker 25 and Compose 2.20 or newer are needed"
        return Finding("note", "docker", shown, needed)
    names = "{{range $k, $v := .Runtimes}}{{$k}} {{end}}"
    runtimes = _output(["docker", "info", "--format", names])[1]
    has_nvidia = "nvidia" in runtimes.split()
    return Finding("ok", "docker", shown + (", NVIDIA's runtime" if has_nvidia else ""))


def token(settings: UpSettings) -> Finding:
    """The shared secret: there, readable, and read by nobody else."""
    file = Path(settings.token_file or "/nowhere")
    if surroundings.is_own_image() and settings.token is None and not file.exists():
        return Finding("ok", "token", "none in this container: the page needs none")
    try:
        secret = settings.secret()
    except SettingsError as error:
        return Finding("missing", "token", str(error), "check KODOLLY_TOKEN, or --token-file")
    if secret is None:
        cure = "set KODOLLY_TOKEN, or --token-file, before anything listens beyond loopback"
        return Finding("note", "token", "none: this machine alone is served", cure)
    if settings.token is not None:
        return Finding("ok", "token", "set")
    if file.stat().st_mode & 0o077:
        return Finding("note", "token", f"{file} can be read by others", f"chmod 600 {file}")
    return Finding("ok", "token", f"in {file}, for its owner alone")


def vllm(settings: UpSettings) -> Finding:
    """vLLM, in the environment of the engine or in this one."""
    if not _runs_engine():
        return Finding("ok", "vllm", NO_ENGINE)
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
    if surroundings.is_own_image():
        return Finding("ok", "packages", "the image has what its process needs")
    if not absent:
        return Finding("ok", "packages", "torch, transformers and gradio are installed")
    return Finding(
        "missing", "packages", f"extras {','.join(sorted(absent))}", install_command(absent)
    )


def disk(settings: UpSettings) -> Finding:
    """Free disk space for models and logs."""
    if surroundings.is_own_image():
        return Finding("ok", "disk", "nothing is written inside a container")
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
    """Memory for the embedded model: the machine's, or what a container is limited to."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{total / GIB:.1f} GiB"
    if (limit := surroundings.memory_limit()) is not None and limit < total:
        total, text = limit, f"{limit / GIB:.1f} of {text}, by the container's limit"
    if total >= NEEDED_MEMORY or not _runs_engine():
        return Finding("ok", "memory", text)
    return Finding("note", "memory", text, "the embedded model needs about 2 GiB for itself")


def free_ports(settings: UpSettings) -> Finding:
    """The ports `kodolly up` would listen on."""
    if surroundings.is_own_image():
        return Finding("ok", "ports", "the image's process has its own")
    try:
        check_ports(settings)
    except SettingsError as error:
        return Finding("missing", "ports", str(error), "or leave it if KoDolly already runs there")
    ports = sorted(listener.port for listener in plan.listeners(settings))
    numbers = ", ".join(map(str, ports))
    return Finding("ok", "ports", f"{numbers} are free")


def model(settings: UpSettings) -> Finding:
    """The model `kodolly up` would serve; in an image, the worker's."""
    directory = settings.model_directory()
    if surroundings.is_own_image():
        if not _runs_engine():
            return Finding("ok", "model", NO_ENGINE)
        directory = _image_model() or directory
    if directory.is_dir():
        try:
            check_model_files(directory)
        except SettingsError as error:
            return Finding("missing", "model", str(error), "check --model")
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
    place,
    packages,
    gpu,
    vllm,
    docker,
    token,
    disk,
    memory,
    free_ports,
    model,
)


def _image_model() -> Path | None:
    """The model of a worker's image, or the operator's in its place."""
    worker = resolve(WorkerSettings, [], prog="kodolly worker", sections=SECTIONS).settings
    return Path(worker.model) if worker.model else None


def _runs_engine() -> bool:
    """Whether an engine may run here: anywhere but in the images of the other processes."""
    directory = _image_model() if surroundings.is_own_image() else None
    return not surroundings.is_own_image() or (directory is not None and directory.is_dir())


def _output(command: Sequence[str]) -> tuple[int, str]:
    """A program's exit status, and what it says: its output, or the last line of its complaint."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    complaint = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return done.returncode, done.stdout.strip() if done.returncode == 0 else "".join(complaint[-1:])


def _number(version: str) -> tuple[int, ...]:
    """The first two numbers of a version, such as (26, 1); without one, (0,)."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2]) or (0,)


def _torch_is_for_cpu() -> bool:
    """Whether the torch of this environment cannot use a GPU; False without a torch."""
    try:
        return "+cpu" in version("torch")
    except PackageNotFoundError:
        return False


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
