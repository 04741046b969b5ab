"""`python -m kodolly.processes.leash GRACE PROGRAM ARGS...`: runs PROGRAM as long as standard input stays open.

Standard input is a socket whose other end the parent holds. When the parent dies, even by SIGKILL,
the socket closes: PROGRAM gets SIGTERM, and its whole process group SIGKILL after GRACE seconds.
SIGTERM to the leash does the same. The leash writes PROGRAM's pid to the socket, and exits with its
exit code (128 + signal for a signal) after sweeping up what PROGRAM left in its group.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys


def main(grace: float, argv: list[str]) -> int:
    """Runs `argv` to its end and returns its exit code."""
    wake, poke = os.pipe()
    os.set_blocking(poke, False)
    signal.set_wakeup_fd(poke)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    try:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, process_group=0)
    except OSError as error:
        sys.stderr.write(f"cannot start {argv[0]}: {error.strerror}\n")
        return 127
    try:
        os.write(0, b"%d\n" % child.pid)
    except OSError:  # the parent died while we started
        _end(child, grace)
    while child.poll() is None:
        ready, _, _ = select.select([0, wake], [], [])
        gone = 0 in ready and _closed()
        asked = wake in ready and bool({signal.SIGTERM, signal.SIGINT} & set(os.read(wake, 64)))
        if gone or asked:
            _end(child, grace)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _closed() -> bool:
    try:
        return not os.read(0, 1)
    except OSError:  # the parent died before it read our line: the socket is reset
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
