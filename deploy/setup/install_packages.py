"""`install_packages.py PYTHON ARGUMENT...`: what `PYTHON -m pip install ARGUMENT...` does, in seconds.

uv does it: the one on PATH, or else one that pip puts beside PYTHON first. Where no uv can be had, where
it fails, or with KODOLLY_INSTALLER=pip, pip does it. uv does not read pip's settings, so those that say
where packages come from are handed over to it; UV_* variables that are set already win.

With `torch` among the arguments and no NVIDIA driver on this machine, the build for CPUs is preferred.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
# pip's setting, uv's variable for it, and what stands between several values there
VARIABLES = (
    ("index-url", "UV_DEFAULT_INDEX", " "),
    ("extra-index-url", "UV_INDEX", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("no-index", "UV_NO_INDEX", " "),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("cert", "SSL_CERT_FILE", " "),
)
CUDA_SIZE = "2.7 GB to download"


def main(argv: Sequence[str]) -> int:
    """Install, and return the exit status of the installer that did it."""
    if len(argv) < 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    python, *arguments = argv
    uv = None if os.environ.get("KODOLLY_INSTALLER") == "pip" else find_uv(python)
    if uv is not None:
        if install_with_uv(uv, python, arguments) == 0:
            return 0
        say("uv could not install this (see above); trying pip")
    quiet = ["--quiet", "--progress-bar", "on"]
    return subprocess.call([*pip(python), "install", *quiet, *arguments])


def find_uv(python: str) -> str | None:
    """A uv to install with; None where there is none and pip cannot bring it."""
    if on_path := shutil.which("uv"):
        return on_path
    beside = Path(python).absolute().parent / "uv"
    if beside.is_file():
        return str(beside)
    command = [*pip(python), "install", "--quiet", "-c", str(CONSTRAINTS), "uv"]
    done = subprocess.run(command, capture_output=True, check=False)
    return str(beside) if done.returncode == 0 and beside.is_file() else None


def install_with_uv(uv: str, python: str, arguments: Sequence[str]) -> int:
    """Run `uv pip install` with pip's settings; returns its exit status."""
    settings = pip_settings(python)
    environment = os.environ | uv_variables(settings)
    command = [uv, "pip", "install", "--python", python]
    for file in settings.get("constraint", "").split():
        command += ["-c", file]
    if "torch" not in arguments:
        return subprocess.call([*command, "--quiet", *arguments], env=environment)
    if shutil.which("nvidia-smi") is None and brings_cuda(command, arguments, environment):
        # No retries: an index that cannot be reached is noticed at once.
        once = environment | {"UV_HTTP_RETRIES": "0"}
        for_cpu = [*command, "--torch-backend=cpu", *arguments]
        if subprocess.run(for_cpu, env=once, capture_output=True, check=False).returncode == 0:
            return 0
        say(
            "PyTorch's index of CPU builds cannot be reached: "
            f"installing the build for NVIDIA GPUs, which also runs on the CPU ({CUDA_SIZE})"
        )
    return subprocess.call([*command, *arguments], env=environment)


def brings_cuda(command: Sequence[str], arguments: Sequence[str], env: Mapping[str, str]) -> bool:
    """Whether this installation would bring NVIDIA's packages; nothing is installed by asking."""
    trial = [*command, "--dry-run", *arguments]
    done = subprocess.run(trial, env=env, capture_output=True, text=True, check=False)
    return "+ nvidia-" in done.stderr


def pip_settings(python: str) -> dict[str, str]:
    """What pip's files and PIP_* variables say, by the setting's name, whatever section it stands in."""
    done = subprocess.run(
        [*pip(python), "config", "list"], capture_output=True, text=True, check=False
    )
    values = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    # Later sections win: pip reads [global], then the command's own, then the environment.
    return {
        key.removeprefix(section): str(ast.literal_eval(value))
        for section in ("global.", "install.", ":env:.")
        for key, value in values.items()
        if key.startswith(section)
    }


def uv_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """The variables that make uv take packages from where pip does, but those that are set already."""
    variables = {
        variable: between.join(settings[name].split())
        for name, variable, between in VARIABLES
        if settings.get(name)
    }
    if "UV_INDEX" in variables:  # pip takes the best version that any of its indexes has
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return {name: value for name, value in variables.items() if name not in os.environ}


def pip(python: str) -> list[str]:
    """pip of this interpreter, as the start of a command."""
    return [python, "-m", "pip", "--disable-pip-version-check"]


def say(text: str) -> None:
    """One line for the person who waits."""
    sys.stderr.write(f"kodolly: {text}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
