"""Runs a program that must not outlive its parent: the leash, a process between the two.

`python -m kodolly.processes.leash GRACE PROGRAM ARGS...`: standard input is a socket whose other end
the parent has open. When the parent dies, even by SIGKILL, the kernel closes the socket. PROGRAM then
gets SIGTERM, and after GRACE seconds its whole process group SIGKILL. SIGTERM to the leash does the
same. The leash writes PROGRAM's process id to the socket. When PROGRAM has ended, the leash kills what
is left of its group, and exits with PROGRAM's exit code (128 + N for signal N).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys


def main(grace: float, argv: list[str]) -> int:
    """Runs `argv` until it ends; returns its exit code, or 127 if it cannot be started."""
    wake, signals = os.pipe()  # Python writes the number of each signal to the second end
    os.set_blocking(signals, False)
    signal.set_wakeup_fd(signals)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    try:
        # Descriptors that the parent passed on, such as a GPU's lease, are the program's as well.
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, process_group=0, close_fds=False)
    except OSError as error:
        sys.stderr.write(f"cannot start {argv[0]}: {error.strerror}\n")
        return 127
    try:
        os.write(0, b"%d\n" % child.pid)
    except OSError:  # the parent has died already
        _end(child, grace)
    while child.poll() is None:
        ready, _, _ = select.select([0, wake], [], [])
        parent_died = 0 in ready and _is_closed()
        must_end = wake in ready and bool({signal.SIGTERM, signal.SIGINT} & set(os.read(wake, 64)))
        if parent_died or must_end:
            _end(child, grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _is_closed() -> bool:
    """Whether the socket on standard input was closed by the other side."""
    try:
        return not os.read(0, 1)
    except OSError:  # the parent died before it read the process id: the socket was reset
        return True


def _end(child: subprocess.Popen[bytes], grace: float) -> None:
    child.terminate()
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
