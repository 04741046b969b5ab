"""The parent's side of a leash: start, watch and stop one child process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any


class LeashedProcess:
    """A running child. `pid` is the program's own, not the leash's."""

    def __init__(self, leash: asyncio.subprocess.Process, line: socket.socket, pid: int) -> None:
        self._leash = leash
        self._line = line
        self.pid = pid

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        output: IO[Any] | None = None,
        grace: float = 10.0,
    ) -> LeashedProcess:
        """Starts `argv` with `env` over this environment; both its outputs go to `output`.

        `grace`: seconds between SIGTERM and SIGKILL. A program that cannot be started exits 127;
        OSError if even the leash cannot be.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                leash = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "kodolly.processes.leash", str(grace), *argv),
                    stdin=theirs.fileno(),
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT if output else None,
                    env={**os.environ, **(env or {})},
                    start_new_session=True,
                )
            ours.setblocking(False)
            line = await asyncio.get_running_loop().sock_recv(ours, 32)
        except BaseException:  # cancelled too: a leash nobody holds must let go
            ours.close()
            raise
        return cls(leash, ours, int(line or 0))

    @property
    def running(self) -> bool:
        """Whether the program has not ended yet."""
        return self._leash.returncode is None

    async def wait(self) -> int:
        """Waits for the end and returns the exit code: 128 + N for signal N, 127 if not started."""
        code = await self._leash.wait()
        if code < 0 and self.pid:  # the leash itself was killed: what it held must not stay
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._line.close()
        return code if code >= 0 else 128 - code

    async def stop(self) -> int:
        """SIGTERM, then SIGKILL for the whole group after the grace; returns the exit code."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._leash.terminate()
        return await self.wait()
