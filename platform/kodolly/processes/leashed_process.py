"""The parent's side of a leash (see `leash`): starts and stops one child process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any


class LeashedProcess:
    """A running program. `pid`: of the program itself, not of its leash."""

    def __init__(
        self, leash: asyncio.subprocess.Process, parent_socket: socket.socket, pid: int
    ) -> None:
        self._leash = leash
        self._socket = parent_socket
        self.pid = pid

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        without: Callable[[str], bool] = lambda _: False,
        output: IO[Any] | None = None,
        grace: float = 10.0,
        descriptors: Sequence[int] = (),
    ) -> LeashedProcess:
        """Starts `argv`; its stdout and stderr go to `output`.

        Its environment is this one, without the variables for which `without` is true, and with `env`.

        `grace`: seconds between SIGTERM and SIGKILL. `descriptors`: open files that leash and program
        inherit. If the program cannot be started, its exit
        code is 127. Raises OSError if even the leash cannot be started.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                leash = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "kodolly.processes.leash", str(grace), *argv),
                    stdin=theirs.fileno(),
                    stdout=output,
                    stderr=asyncio.subprocess.STDOUT if output else None,
                    env={n: v for n, v in os.environ.items() if not without(n)} | dict(env or {}),
                    start_new_session=True,
                    pass_fds=descriptors,
                )
            ours.setblocking(False)
            pid = await asyncio.get_running_loop().sock_recv(ours, 32)
        except BaseException:  # also when cancelled: closing the socket ends the leash
            ours.close()
            raise
        return cls(leash, ours, int(pid or 0))

    @property
    def running(self) -> bool:
        """Whether the program has not ended yet."""
        return self._leash.returncode is None

    async def wait(self) -> int:
        """Waits until it ends; returns the exit code: 128 + N for signal N, 127 if not started."""
        code = await self._leash.wait()
        if code < 0 and self.pid:  # the leash itself was killed, so the program still runs
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._socket.close()
        return code if code >= 0 else 128 - code

    async def stop(self) -> int:
        """SIGTERM, and after the grace SIGKILL for the whole group; returns the exit code."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._leash.terminate()
        return await self.wait()
