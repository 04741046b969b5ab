"""A leashed process cannot outlive its parent."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from support.processes import eventually, wait_until

from kodolly.processes.leashed_process import LeashedProcess


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie nobody has collected yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def test_exit_codes_come_through() -> None:
    """The program's own exit code is the leash's; 127 when it cannot be started."""
    three = await LeashedProcess.start([sys.executable, "-c", "import sys; sys.exit(3)"])
    assert await three.wait() == 3

    missing = await LeashedProcess.start(["./no-such-program"])
    assert await missing.wait() == 127


async def test_stop_ends_the_whole_group(tmp_path: Path) -> None:
    """Grandchildren go too, and one that ignores SIGTERM is killed after the grace."""
    code = "trap '' TERM; sleep 60 & echo started; wait; wait"
    said = tmp_path / "said"
    with said.open("wb") as output:
        process = await LeashedProcess.start(["sh", "-c", code], grace=0.5, output=output)
    await eventually(lambda: "started" in said.read_text())
    pids = [process.pid, *_children(process.pid)]
    assert len(pids) == 2

    assert await process.stop() == 128 + signal.SIGKILL

    await eventually(lambda: not any(map(alive, pids)))


async def test_a_killed_leash_does_not_set_the_program_free() -> None:
    """SIGKILL of the leash itself: whoever waits for it ends the program."""
    process = await LeashedProcess.start(["sleep", "60"])
    leash = os.getpgid(process.pid)  # the program leads a group of its own
    assert leash == process.pid
    os.kill(_parent(process.pid), signal.SIGKILL)

    assert await process.wait() == 128 + signal.SIGKILL
    await eventually(lambda: not alive(process.pid))


def test_a_killed_parent_takes_the_program_along(tmp_path: Path) -> None:
    """SIGKILL of the parent, which can clean up nothing, still ends the program."""
    note = tmp_path / "pid"
    code = f"""
import asyncio, os, pathlib, signal
from kodolly.processes.leashed_process import LeashedProcess
async def main():
    process = await LeashedProcess.start(["sleep", "60"])
    pathlib.Path({str(note)!r}).write_text(str(process.pid))
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], timeout=30, check=False)

    wait_until(lambda: not alive(int(note.read_text())))


def _start_leash(line: socket.socket, *argv: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "kodolly.processes.leash", "5", *argv]
    return subprocess.Popen(command, stdin=line.fileno(), stderr=subprocess.PIPE)


def test_a_parent_that_died_before_the_start_takes_the_program_along() -> None:
    """The leash cannot tell its program's pid any more: it ends the program, without a traceback."""
    ours, theirs = socket.socketpair()
    ours.close()
    marker = f"60.{os.getpid()}"
    with theirs:
        leash = _start_leash(theirs, "sleep", marker)

    _, said = leash.communicate(timeout=30)

    assert (leash.returncode, said) == (128 + signal.SIGTERM, b"")
    assert not _running(marker)


def test_a_parent_that_died_before_it_read_takes_the_program_along() -> None:
    """A line nobody read resets the socket: for the leash that is a parent's death as well."""
    ours, theirs = socket.socketpair()
    with theirs:
        leash = _start_leash(theirs, "sleep", "60")
    with ours:
        ours.settimeout(30)
        pid = int(ours.recv(32, socket.MSG_PEEK))

    _, said = leash.communicate(timeout=30)

    assert (leash.returncode, said) == (128 + signal.SIGTERM, b"")
    assert not alive(pid)


def _running(marker: str) -> bool:
    """Whether any process has `marker` in its command line."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker.encode() in file.read_bytes():
                return True
    return False


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
