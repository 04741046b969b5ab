"""Leases of GPUs: locks on files, one file a GPU, in a directory that all workers share.

The kernel drops a lock when the last process with its descriptor has ended. The engine's leash and
the engine have it too, so a lease outlasts a worker that is killed until its engine is gone.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kodolly.errors import SettingsError
from kodolly.worker.gpus.devices import Gpu

# An engine fills this part of its share (vLLM's own default for a whole GPU).
FILL = 0.9
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # not a path: MIG's had slashes once


@dataclass(frozen=True, slots=True)
class Lease:
    """GPUs that belong to this process and to all that inherit the descriptors."""

    uuids: tuple[str, ...]
    descriptors: tuple[int, ...]

    def close(self) -> None:
        """Gives this process's part up; those that inherited a descriptor keep the lease."""
        for descriptor in self.descriptors:
            os.close(descriptor)


class Leases:
    """The leases in one directory. `slots`: how many engines share one GPU."""

    def __init__(self, directory: Path, gpus: Callable[[], Sequence[Gpu]], slots: int = 1) -> None:
        self._directory = directory
        self._gpus = gpus
        self._slots = slots

    def has_room(self, gpu: Gpu) -> bool:
        """Whether the GPU has the memory free that one engine fills."""
        return gpu.used <= gpu.total * (1 - FILL / self._slots)

    def take(self, count: int) -> Lease | str:
        """A lease of `count` GPUs; or none at all, and a sentence that says why not.

        Raises SettingsError when this machine has fewer GPUs, or the directory cannot be used.
        """
        number = len(self._gpus())
        if number < count:
            raise SettingsError(f"--gpus {count}: only {number} GPUs are visible to this worker")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            gate = self._open("gate")
        except OSError as error:
            raise SettingsError(f"--gpu-leases {self._directory}: {error.strerror}") from error
        taken: list[tuple[str, list[int]]] = []
        try:
            # One at a time: two that want pairs would each get one of three, and none a second.
            if not _lock(gate, fcntl.LOCK_EX):
                return "another worker is choosing"
            busy = self._take_free(count, taken)
            if len(taken) == count:
                lease = Lease(
                    tuple(uuid for uuid, _ in taken), tuple(fd for _, fds in taken for fd in fds)
                )
                taken = []
                return lease
            others = f"; the memory of {', '.join(busy)} is in use" if busy else ""
            return f"{len(taken)} of {number} GPUs are free, {count} wanted{others}"
        finally:
            for _, descriptors in taken:
                _close(descriptors)
            os.close(gate)

    def _take_free(self, count: int, taken: list[tuple[str, list[int]]]) -> list[str]:
        """Locks free GPUs until there are `count`; returns those free of locks but not of memory."""
        busy = []
        locked = {gpu.uuid: fds for gpu in self._gpus() if (fds := self._lock_slot(gpu.uuid))}
        # Memory is read after locking: an engine that has just ended may still have some.
        memory = {gpu.uuid: gpu for gpu in self._gpus()}
        for uuid, descriptors in locked.items():
            has_room = uuid in memory and self.has_room(memory[uuid])
            if has_room and len(taken) < count:
                taken.append((uuid, descriptors))
                continue
            _close(descriptors)
            if not has_room:
                busy.append(uuid)
        return busy

    def _lock_slot(self, uuid: str) -> list[int]:
        """Descriptors with the locks of a free slot; [] if there is none. Needs the gate.

        A whole GPU is an exclusive lock on its file. A shared one is a shared lock on it, with the
        number of slots inside, and an exclusive lock on a slot's file.
        """
        if not SAFE_NAME.fullmatch(uuid):
            raise SettingsError(f"GPU '{uuid}' has a name that cannot be a file's")
        gpu = self._open(uuid)
        if _lock(gpu, fcntl.LOCK_EX):
            if self._slots == 1:
                return [gpu]
            os.truncate(gpu, 0)
            os.pwrite(gpu, b"%d" % self._slots, 0)
        shares = self._slots > 1 and _lock(gpu, fcntl.LOCK_SH)
        if shares and os.pread(gpu, 16, 0) == b"%d" % self._slots:
            for index in range(self._slots):
                slot = self._open(f"{uuid}.slot-{index}")
                if _lock(slot, fcntl.LOCK_EX):
                    return [gpu, slot]
                os.close(slot)
        os.close(gpu)
        return []

    def _open(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._directory / name, flags, 0o600)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
