"""What a process holds, read from /proc: its memory and its open files."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.soak.plan import EVERY

FIELDS = ("Rss", "Pss", "Private_Clean", "Private_Dirty", "Anonymous")


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes. `own` is anonymous memory: the heap, where alone a leak can be."""

    rss: int
    pss: int
    uss: int
    own: int
    files: int
    sockets: int


def held(pid: int) -> Held:
    """What a process holds now. Raises OSError when it is gone."""
    sizes = dict.fromkeys(FIELDS, 0)
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) * 1024
    links = list(_links(pid))
    uss = sizes["Private_Clean"] + sizes["Private_Dirty"]
    sockets = sum(link.startswith("socket:") for link in links)
    return Held(sizes["Rss"], sizes["Pss"], uss, sizes["Anonymous"], len(links), sockets)


def _links(pid: int) -> Sequence[str]:
    links = []
    for entry in os.scandir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            links.append(os.readlink(entry.path))
    return links


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at all processes, `at` seconds after the beginning, while `open` calls ran."""

    at: float
    open: int
    held: dict[str, Held]


@dataclass(slots=True)
class Sampler:
    """Looks at processes by name, every few seconds."""

    pids: Mapping[str, int]
    calls: Callable[[], int]
    begin: float = field(default_factory=time.monotonic)
    samples: list[Sample] = field(default_factory=list)

    def look(self) -> Sample:
        """One look now, not kept."""
        at = time.monotonic() - self.begin
        return Sample(at, self.calls(), {name: held(pid) for name, pid in self.pids.items()})

    async def run(self, seconds: float) -> None:
        """So long, at even distances whatever a look takes."""
        for number in range(int(seconds / EVERY) + 1):
            await asyncio.sleep(self.begin + number * EVERY - time.monotonic())
            self.samples.append(self.look())
