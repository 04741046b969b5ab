"""Each rival in an environment of its own, built from its pinned file on first use and kept."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class Unavailable(Exception):
    """A rival cannot run here; the text says why."""


def requirements(key: str) -> Path:
    """The pinned requirements of a rival."""
    return Path(__file__).with_name(f"{key}-requirements.txt")


def version(key: str, package: str) -> str | None:
    """The version that a rival's file pins of a package."""
    found = re.search(rf"(?m)^{re.escape(package)}==(\S+)", requirements(key).read_text())
    return found[1] if found else None


def environment(key: str) -> Path:
    """The folder of a rival's programs. Raises Unavailable if it cannot be installed."""
    home = ROOT / f".venv-{key}"
    programs, stamp = home / "bin", home / "requirements.sha256"
    wanted = hashlib.sha256(requirements(key).read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return programs
    print(f"building the environment of {key} (once, a minute or more) ...", file=sys.stderr)
    install = ["-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([programs / "python", *install, "-r", requirements(key)], check=True)
    except (OSError, subprocess.CalledProcessError) as failure:
        raise Unavailable(f"{requirements(key).name} cannot be installed here") from failure
    stamp.write_text(wanted)
    return programs
