"""The logs of `kodolly up`: private files of bounded size, whoever writes them."""

import asyncio
import os
import stat
import sys
from pathlib import Path

import pytest
from support.processes import eventually

from kodolly.settings import UpSettings
from kodolly.supervisor import plan
from kodolly.supervisor.app import Supervisor
from kodolly.supervisor.log_file import LogFile, private_directory, write_private
from kodolly.supervisor.service import Service, ServiceSpec

# Each line in one write, as a log handler's.
SHOUT = """
import os
for n in range({count}):
    os.write(1, f"{name} {{n}} {{'x' * 40}}\\n".encode())
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def write(log: LogFile, *programs: str) -> None:
    """Runs Python programs at once, all with `log` as their output, to their end."""
    read, output = log.open_pipe()
    copying = asyncio.create_task(log.copy(read))
    with output:
        processes = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdout=output)
            for program in programs
        ]
    await asyncio.gather(copying, *(process.wait() for process in processes))
    log.close()


async def test_no_line_of_several_processes_is_lost_or_torn(tmp_path: Path) -> None:
    """Two write at once; the newest lines are kept, whole, in files of bounded size."""
    log = LogFile(tmp_path / "worker.log", 4096)
    await write(log, *(SHOUT.format(count=200, name=name) for name in "ab"))

    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["worker.log", *(f"worker.log.{n}" for n in (1, 2, 3))]
    assert all(file.stat().st_size <= 4096 for file in files)
    assert all(mode(file) == 0o600 for file in files)
    lines = [line for file in reversed(files) for line in file.read_text().splitlines()]
    whole = {f"{name} {n} {'x' * 40}" for name in "ab" for n in range(200)}
    assert set(lines) <= whole
    assert lines[-1].split()[1] == "199"


async def test_the_last_run_stays_beside_the_new_one(tmp_path: Path) -> None:
    """Its log becomes NAME.log.1, private even where an older version made it readable."""
    path = tmp_path / "api.log"
    path.write_text("old\n")
    path.chmod(0o644)
    await write(LogFile(path, 4096), r"print('new\n\x1b[2Jhalf', end='')")

    assert path.read_text() == "new\n\\x1b[2Jhalf\n"
    assert (tmp_path / "api.log.1").read_text() == "old\n"
    assert mode(path) == 0o600


async def test_a_full_disk_ends_no_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be written is told once, and read on: a full pipe would stop the process."""
    log = LogFile(tmp_path / "gone" / "x.log", 2**20)
    await write(log, SHOUT.format(count=5000, name="a"))

    assert caplog.text.count("cannot write") == 1


async def test_the_last_words_of_a_stopped_process_are_kept(tmp_path: Path) -> None:
    """What it says after SIGTERM is in its log once `stop` has returned."""
    program = (
        "import signal, sys, time\n"
        "try:\n    signal.signal(signal.SIGTERM, lambda *_: sys.exit('bye'))\n"
        "    print('up', flush=True)\n    time.sleep(60)\nfinally: pass"
    )
    log = tmp_path / "x.log"
    argv = [sys.executable, "-c", program]
    service = Service(ServiceSpec("x", argv, "http://127.0.0.1:1/"), LogFile(log, 4096))
    service.start()
    await eventually(lambda: log.is_file() and "up" in log.read_text())
    await service.stop()

    assert log.read_text() == "up\nbye\n"


def test_state_and_logs_are_for_their_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the umask is, and also in a home that an older version made."""
    monkeypatch.setattr(plan, "services", lambda *_: [])
    before = os.umask(0)
    try:
        (tmp_path / "home" / "logs").mkdir(parents=True)
        Supervisor(UpSettings(home=str(tmp_path / "home")))
        Supervisor(UpSettings(home=str(tmp_path / "new")))
        write_private(tmp_path / "up.json", "{}")
        private_directory(tmp_path / "other")
    finally:
        os.umask(before)

    assert mode(tmp_path / "home" / "logs") == 0o700
    assert mode(tmp_path / "new") == mode(tmp_path / "new" / "logs") == 0o700
    assert mode(tmp_path / "other") == 0o700
    assert mode(tmp_path / "up.json") == 0o600
