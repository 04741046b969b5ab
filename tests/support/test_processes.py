"""The process helpers: what is started ends, what never comes is told."""

import os
import sys
from pathlib import Path

import pytest
from support.processes import eventually, free_port, start, wait_http, wait_until


def test_a_free_port_is_below_the_ephemeral_range() -> None:
    """No outgoing connection can take it meanwhile."""
    assert 1024 < free_port() < 32768


def test_a_server_is_awaited_and_ends_with_its_children(tmp_path: Path) -> None:
    """Leaving the `with` ends the whole process group, also a child that ignores SIGTERM."""
    port = free_port()
    script = (
        "import http.server, subprocess, sys\n"
        "stubborn = 'import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)'\n"
        "print(subprocess.Popen([sys.executable, '-c', stubborn]).pid, flush=True)\n"
        f"http.server.test(http.server.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')\n"
    )
    log = tmp_path / "log"
    with start([sys.executable, "-c", script], cwd=tmp_path, log=log) as server:
        wait_http(f"http://127.0.0.1:{port}/", process=server)
        wait_http(f"http://127.0.0.1:{port}/missing", status=404, process=server)
        child = int(log.read_text().split()[0])
    assert not server.running
    wait_until(lambda: _ended(child))


def _ended(pid: int) -> bool:
    try:
        return ") Z" in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_settings_of_the_surroundings_stay_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A KODOLLY_ variable or a proxy of the test run reaches no process, unless it is asked for."""
    for name in ("KODOLLY_TOKEN", "https_proxy"):
        monkeypatch.setenv(name, "leaked-in")
    script = "import os; print(*(k + '=' + v for k, v in os.environ.items()), sep='\\n')"
    log = tmp_path / "log"
    with start([sys.executable, "-c", script], env={"KODOLLY_X": "inside"}, log=log) as process:
        wait_until(lambda: not process.running)
    assert "leaked-in" not in log.read_text()
    assert "KODOLLY_X=inside" in log.read_text()
    assert f"PATH={os.environ['PATH']}" in log.read_text()


def test_waiting_for_a_dead_process_ends_at_once_with_its_words(tmp_path: Path) -> None:
    """The failure names the exit code and repeats the log."""
    argv = [sys.executable, "-c", "raise SystemExit('no such flag')"]
    with (
        start(argv, log=tmp_path / "log") as process,
        pytest.raises(AssertionError, match=r"ended \(1\)(.|\n)*no such flag"),
    ):
        wait_http("http://127.0.0.1:9/", process=process)


async def test_eventually_returns_what_it_waited_for() -> None:
    """Plain and coroutine conditions are polled until their value is true."""
    values = iter([0, None, "yes"])
    assert await eventually(lambda: next(values)) == "yes"

    async def late() -> str:
        return next(words)

    words = iter(["", "come"])
    assert await eventually(late) == "come"
    with pytest.raises(AssertionError, match="no miracle in time"):
        await eventually(lambda: False, 0.1, what="miracle")
