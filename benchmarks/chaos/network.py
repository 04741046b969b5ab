"""A network namespace for each worker, so that one can be cut off as a pulled cable would do it.

Dropped packets are the hard case: no reset comes back, connections just fall silent. Needs root;
without it all workers live on loopback and `why_not` says why nothing can be cut.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Network:
    """Addresses of the workers. `hub` is where they reach the controller."""

    hub: str = "127.0.0.1"
    names: list[str] = field(default_factory=list)
    why_not: str | None = None

    def address(self, worker: int) -> str:
        """The address a worker listens on."""
        return f"{self.hub.rpartition('.')[0]}.{10 + worker}" if self.names else self.hub

    def prefix(self, worker: int) -> list[str]:
        """What stands before a worker's command."""
        return ["ip", "netns", "exec", self.names[worker]] if self.names else []

    def cut(self, worker: int) -> None:
        """Drops every packet from and to a worker; its own loopback stays."""
        for chain, side in (("INPUT", "-i"), ("OUTPUT", "-o")):
            self._rule(worker, ["-I", chain, "!", side, "lo", "-j", "DROP"])

    def mend(self, worker: int) -> None:
        """Lets packets through again."""
        self._rule(worker, ["-F"])

    def _rule(self, worker: int, rule: list[str]) -> None:
        _run(*self.prefix(worker), "iptables", "-w", *rule)


@contextlib.contextmanager
def network(workers: int) -> Iterator[Network]:
    """Namespaces on a bridge of their own, gone afterwards; loopback where that is not allowed."""
    mark = os.getpid() % 10_000
    names = [f"chaos{mark}w{worker}" for worker in range(workers)]
    bridge = f"chaos{mark}"
    made = Network(hub=f"10.{200 + mark % 50}.{mark % 250}.1", names=names)
    with contextlib.ExitStack() as stack:
        try:
            stack.callback(_quietly, "ip", "link", "del", bridge)
            _run("ip", "link", "add", bridge, "type", "bridge")
            _run("ip", "addr", "add", f"{made.hub}/24", "dev", bridge)
            _run("ip", "link", "set", bridge, "up")
            for worker, name in enumerate(names):
                stack.callback(_quietly, "ip", "netns", "del", name)
                _join(name, f"c{mark}w{worker}", bridge, made.address(worker))
            made.cut(0)  # proves that rules can be set
            made.mend(0)
        except (OSError, subprocess.CalledProcessError) as failure:
            stack.close()
            made = Network(why_not=_reason(failure))
        yield made


def _join(name: str, port: str, bridge: str, address: str) -> None:
    _run("ip", "netns", "add", name)
    _run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
    _run("ip", "link", "set", port, "master", bridge, "up")
    for words in (
        ["addr", "add", f"{address}/24", "dev", "eth0"],
        ["link", "set", "eth0", "up"],
        ["link", "set", "lo", "up"],
    ):
        _run("ip", "-n", name, *words)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _quietly(*command: str) -> None:
    subprocess.run(command, check=False, capture_output=True)


def _reason(failure: Exception) -> str:
    if isinstance(failure, subprocess.CalledProcessError):
        said = str(failure.stderr or "").strip() or f"exit code {failure.returncode}"
        return f"`{' '.join(failure.cmd[:4])}`: {said}"
    return str(failure)
