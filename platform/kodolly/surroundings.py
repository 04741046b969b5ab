"""Where this process runs: in a container or not, and within which limits."""

from __future__ import annotations

import os
from pathlib import Path

IMAGE_CONFIG = "/etc/kodolly/kodolly.toml"  # KODOLLY_CONFIG inside KoDolly's own images
CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 2**60  # bytes; cgroup v1 writes a number beyond it for "no limit"


def container(root: Path = Path("/")) -> str | None:
    """What runs the container this process is in; None outside of one."""
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "Kubernetes"
    if (root / ".dockerenv").exists():
        return "Docker"
    if (root / "run/.containerenv").exists():
        return "Podman"
    return None


def is_own_image() -> bool:
    """Whether this is one of KoDolly's own images, each of which runs one process."""
    return os.environ.get("KODOLLY_CONFIG") == IMAGE_CONFIG


def memory_limit(cgroups: Path = CGROUPS) -> int | None:
    """Bytes that this container may use; None if the machine's memory is the only limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        text = _read(cgroups / name)
        if text.isdigit() and int(text) < UNLIMITED:
            return int(text)
    return None


def cpu_limit(cgroups: Path = CGROUPS) -> float | None:
    """Cores that this container may use at once; None if it may use all."""
    quota, _, period = _read(cgroups / "cpu.max").partition(" ")
    if not quota:
        quota = _read(cgroups / "cpu/cpu.cfs_quota_us")
        period = _read(cgroups / "cpu/cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def pids_limit(cgroups: Path = CGROUPS) -> int | None:
    """Processes and threads that this container may have; None without a limit."""
    for name in ("pids.max", "pids/pids.max"):
        if (text := _read(cgroups / name)).isdigit():
            return int(text)
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
