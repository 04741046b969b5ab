"""Every process ends cleanly when told to: exit code 0, fast, with open streams or without."""

import signal
import subprocess
import sys
import urllib.request

import pytest
from support.processes import free_port, start, wait_http


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("command", ["controller", "api"])
def test_a_told_process_exits_0(command: str, number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C are orders, not failures."""
    port = free_port()
    argv = [sys.executable, "-m", "kodolly", command, "--port", str(port)]
    with start(argv) as process:
        wait_http(f"http://127.0.0.1:{port}/health", process=process)
        process.popen.send_signal(number)

        assert process.popen.wait(20) == 0


def test_an_open_watch_stream_does_not_hold_the_controller() -> None:
    """A follower connected for ever does not keep the controller from stopping."""
    port = free_port()
    argv = [sys.executable, "-m", "kodolly", "controller", "--port", str(port)]
    with start(argv) as process:
        wait_http(f"http://127.0.0.1:{port}/health", process=process)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/watch", timeout=20) as stream:
            assert stream.readline().startswith(b"{")
            process.popen.send_signal(signal.SIGTERM)

            assert process.popen.wait(20) == 0


# Told to end in the moment between the signal handlers and the event loop.
EARLY = """
import os, signal, uvicorn
from starlette.applications import Starlette
from kodolly.http import server

make = uvicorn.Config.get_loop_factory

def told_meanwhile(config):
    os.kill(os.getpid(), signal.SIGTERM)
    return make(config)

uvicorn.Config.get_loop_factory = told_meanwhile
told, started = (lambda: print("told")), (lambda: print("started"))
server.run(Starlette(), "127.0.0.1", 0, on_exit=told, on_start=started)
"""


def test_a_signal_before_the_server_listens_is_not_lost() -> None:
    """Who is told to end while still starting ends, by the way out of all others."""
    argv = [sys.executable, "-c", EARLY]
    process = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    assert (process.returncode, process.stdout) == (0, "told\n")
