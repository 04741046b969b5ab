"""What a worker wants of GPUs, and how it waits for it."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kodolly.errors import SettingsError
from kodolly.worker.gpus.devices import Gpu, NoNvmlError, visible_gpus
from kodolly.worker.gpus.lease import FILL, Lease, Leases

log = logging.getLogger(__name__)

POLL_INTERVAL = 0.5  # seconds between two looks for a free GPU
MEMORY_TIMEOUT = 30.0  # seconds for the memory of an engine that ended to become free
MOST = 64  # GPUs of one engine
# vLLM's flags whose sizes, multiplied, are the number of its GPUs
PARALLEL_FLAGS = frozenset(
    {
        *("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp"),
        *("--data-parallel-size", "-dp"),
    }
)


class GpuRequest:
    """The GPUs of one worker: leased before its first engine, kept from engine to engine."""

    def __init__(self, count: int, leases: Leases, gpus: Callable[[], Sequence[Gpu]]) -> None:
        self._count = count
        self._leases = leases
        self._gpus = gpus
        self._lease: Lease | None = None

    async def lease(self, waits: Callable[[str | None], None]) -> Lease:
        """The lease, as soon as enough GPUs are free.

        `waits` is called with the reason whenever it changes, and with None at the end. Raises
        SettingsError when this machine can never meet the request.
        """
        cause: str | None = None
        while self._lease is None:
            result = await asyncio.to_thread(self._try)
            if isinstance(result, Lease):
                self._lease = result
                log.info("leased %s", ", ".join(result.uuids))
            else:
                if result != cause:
                    log.info("waiting for a GPU: %s", result)
                    waits(result)
                cause = result
                await asyncio.sleep(POLL_INTERVAL)
        waits(None)
        return self._lease

    def _try(self) -> Lease | str:
        try:
            return self._leases.take(self._count)
        except NoNvmlError as error:  # it answered when the worker started: the driver restarts
            return str(error)

    async def until_memory_is_free(self, lease: Lease) -> None:
        """Waits until an engine that ended has given its memory back, at most MEMORY_TIMEOUT."""
        deadline = time.monotonic() + MEMORY_TIMEOUT
        while time.monotonic() < deadline:
            try:
                gpus = await asyncio.to_thread(self._gpus)
            except NoNvmlError:
                return
            if not any(g.uuid in lease.uuids and not self._leases.has_room(g) for g in gpus):
                return
            await asyncio.sleep(POLL_INTERVAL)
        log.warning("the leased GPU's memory is still in use; the engine is started anyway")

    def close(self) -> None:
        """Gives the GPUs back, once no engine runs any more."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None


def number_of_gpus(gpus: str, *, uses_cuda: bool, extra_args: Sequence[str] = ()) -> int:
    """How many GPUs --gpus asks for. `uses_cuda`: the engine is vLLM's build for CUDA.

    'auto' is one, or as many as the engine's own arguments spread the model over.

    Raises SettingsError for a wrong value.
    """
    if gpus == "none":
        return 0
    if gpus == "auto":
        return parallel_size(extra_args) if uses_cuda and _has_gpus() else 0
    if gpus.isascii() and gpus.isdigit() and 1 <= int(gpus[:9]) <= MOST:
        return int(gpus[:9])
    raise SettingsError(f"--gpus {gpus}: write a number from 1 to {MOST}, 'auto' or 'none'")


def gpu_request(
    gpus: str, share: float, directory: str | None, extra_args: Sequence[str], *, uses_cuda: bool
) -> GpuRequest | None:
    """The request of a worker with these settings; None if it wants no GPU. Raises SettingsError."""
    count = number_of_gpus(gpus, uses_cuda=uses_cuda, extra_args=extra_args)
    if not count:
        return None
    if count > 1 and share < 1:
        raise SettingsError(f"--gpu-share {share}: an engine on {count} GPUs has them as a whole")
    try:
        number = len(visible_gpus())
    except NoNvmlError as error:
        raise SettingsError(f"--gpus {gpus}: {error}") from error
    if number < count:
        raise SettingsError(f"--gpus {gpus}: only {number} GPUs are visible to this worker")
    folder = Path(directory) if directory else default_directory()
    return GpuRequest(count, Leases(folder, visible_gpus, slots(share)), visible_gpus)


def default_directory() -> Path:
    """This user's directory of leases on this machine."""
    return Path(tempfile.gettempdir()) / f"kodolly-gpus-{os.getuid()}"


def slots(share: float) -> int:
    """How many engines with this share one GPU has room for."""
    return max(1, int(1 / share + 1e-9))


def vllm_flags(count: int, share: float, extra_args: Sequence[str]) -> tuple[str, ...]:
    """vLLM's flags for its GPUs; none that the operator has given."""
    names = {word.partition("=")[0].replace("_", "-") for word in extra_args}
    flags: list[str] = []
    if count > 1 and not names & PARALLEL_FLAGS:
        flags += ["--tensor-parallel-size", str(count)]
    if share < 1 and "--gpu-memory-utilization" not in names:
        flags += ["--gpu-memory-utilization", f"{FILL / slots(share):.3f}"]
    return tuple(flags)


def parallel_size(extra_args: Sequence[str]) -> int:
    """Over how many GPUs vLLM's arguments spread a model: the product of their sizes, else 1.

    Raises SettingsError for a size that is no number from 1 to MOST.
    """
    product = 1
    for word, following in zip(extra_args, (*extra_args[1:], ""), strict=True):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") not in PARALLEL_FLAGS:
            continue
        size = value if equals else following
        if not (size.isascii() and size.isdigit() and 1 <= int(size[:9]) <= MOST):
            raise SettingsError(f"engine argument {flag}: '{size}' is no number from 1 to {MOST}")
        product *= int(size)
    return product


def _has_gpus() -> bool:
    try:
        return bool(visible_gpus())
    except NoNvmlError as error:
        log.warning("no GPU is leased, the engine chooses by itself: %s", error)
        return False
