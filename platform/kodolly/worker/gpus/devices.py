"""The GPUs of this machine, by NVIDIA's management library (NVML)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kodolly.errors import SettingsError

INSTALL_HINT = "pip install 'kodolly[gpus]'"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU, or one instance of a GPU that MIG divides. `used`, `total`: bytes of memory."""

    uuid: str
    used: int
    total: int


class NoNvmlError(Exception):
    """NVML cannot be used: no driver, or the package nvidia-ml-py is missing."""


def list_gpus() -> list[Gpu]:
    """All GPUs, in NVML's order. Where MIG is on, its instances stand for the GPU.

    Raises NoNvmlError where NVML cannot be loaded or does not answer.
    """
    try:
        import pynvml
    except ImportError:
        raise NoNvmlError(f"nvidia-ml-py is not installed: {INSTALL_HINT}") from None
    try:
        pynvml.nvmlInit()
        try:
            handles = _handles(pynvml)
            return [_gpu(pynvml, handle) for handle in handles]
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise NoNvmlError(f"NVIDIA's driver does not answer: {error}") from error


def visible(gpus: Sequence[Gpu], choice: str | None) -> list[Gpu]:
    """The GPUs that `choice`, a value of CUDA_VISIBLE_DEVICES, leaves; all if it is None.

    A word is an index in NVML's order, a UUID, or the beginning of one. Raises SettingsError for a
    word that names no GPU, or several.
    """
    if choice is None:
        return list(gpus)
    words = [word.strip() for word in choice.split(",")]
    if words in ([""], ["-1"], ["NoDevFiles"]):
        return []
    return list(dict.fromkeys(_named(gpus, word) for word in words))


def visible_gpus() -> list[Gpu]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to this process. Raises as the two above."""
    return visible(list_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def _named(gpus: Sequence[Gpu], word: str) -> Gpu:
    if word.isascii() and word.isdigit():
        matches = list(gpus[int(word) : int(word) + 1]) if len(word) < 4 else []
    else:
        matches = [gpu for gpu in gpus if word and gpu.uuid.startswith(word)]
    if len(matches) != 1:
        there_are = ", ".join(gpu.uuid for gpu in gpus) or "none"
        number = "several GPUs" if matches else "no GPU"
        raise SettingsError(
            f"CUDA_VISIBLE_DEVICES: '{word}' names {number} of this machine ({there_are})"
        )
    return matches[0]


def _handles(nvml: Any) -> Iterator[Any]:
    for index in range(nvml.nvmlDeviceGetCount()):
        gpu = nvml.nvmlDeviceGetHandleByIndex(index)
        if not _has_mig(nvml, gpu):
            yield gpu
            continue
        for instance in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
            with contextlib.suppress(nvml.NVMLError_NotFound):
                yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, instance)


def _has_mig(nvml: Any, gpu: Any) -> bool:
    with contextlib.suppress(nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return bool(nvml.nvmlDeviceGetMigMode(gpu)[0])
    return False


def _gpu(nvml: Any, handle: Any) -> Gpu:
    uuid, memory = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(uuid if isinstance(uuid, str) else uuid.decode(), memory.used, memory.total)
