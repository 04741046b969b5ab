"""TLS everywhere, between real processes: page, two API processes, controller, worker, engine."""

import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.certificates import Certificate, make_certificate
from support.processes import ENGINE_OFFSET, Process, free_port, start, wait_until
from support.tiny_models import make_tiny_llama

pytestmark = pytest.mark.stack

KODOLLY = (sys.executable, "-m", "kodolly")
START = 180.0
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "안녕하세요?"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


def answer(api: str, trust: ssl.SSLContext) -> str:
    """A chat's answer; "" while the API or its model is not there."""
    try:
        with httpx.Client(verify=trust, timeout=30) as client:
            models = client.get(f"{api}/v1/models").json()["data"]
            body = CHAT | {"model": models[0]["id"]}
            response = client.post(f"{api}/v1/chat/completions", json=body)
            return str(response.json()["choices"][0]["message"]["content"])
    except (httpx.HTTPError, IndexError, KeyError):
        return ""


def speaks_plain_http(port: int) -> bool:
    """Whether a request without TLS gets an answer."""
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        try:
            return sock.recv(4) == b"HTTP"
        except OSError:
            return False


@contextmanager
def processes(
    files: Certificate, model: Path, log: Path
) -> Iterator[tuple[dict[str, int], Process]]:
    """Every process by itself, all with the same certificate; yields their ports and the API."""
    ports = {name: free_port() for name in ("controller", "worker", "api", "web")}
    ports["engine"] = ports["worker"] + ENGINE_OFFSET
    urls = {name: f"https://127.0.0.1:{port}" for name, port in ports.items()}
    tls = ("--tls-cert", files.cert, "--tls-key", files.key, "--tls-ca", files.ca)
    flags: dict[str, tuple[str, ...]] = {
        "controller": (),
        "worker": (
            *("--controller", urls["controller"], "--model", str(model)),
            *("--engine-port", str(ports["engine"])),
        ),
        "api": ("--controller", urls["controller"], "--processes", "2"),
        "web": ("--api", urls["api"]),
    }
    with ExitStack() as stack:
        started = {
            name: stack.enter_context(
                start((*KODOLLY, name, "--port", str(ports[name]), *more, *tls), log=log)
            )
            for name, more in flags.items()
        }
        yield ports, started["api"]


def test_every_process_speaks_tls_alone(model: Path, tmp_path: Path) -> None:
    """A chat passes through all of them, the table names https addresses, plain HTTP gets nothing."""
    files, log = make_certificate(tmp_path / "files"), tmp_path / "log"
    trust = ssl.create_default_context(cafile=str(files.ca))
    with processes(files, model, log) as (ports, api):
        url = f"https://127.0.0.1:{ports['api']}"
        wait_until(lambda: answer(url, trust), START, what="answer over TLS", process=api)
        with httpx.Client(verify=trust, timeout=30) as client:
            workers = client.get(f"https://127.0.0.1:{ports['controller']}/workers").json()
            page = f"https://127.0.0.1:{ports['web']}/"

            def page_status() -> int:
                try:
                    return client.get(page).status_code
                except httpx.HTTPError:
                    return 0

            wait_until(lambda: page_status() == 200, START, what="the page")
        (row,) = workers["workers"]
        assert row["name"] == f"https://127.0.0.1:{ports['worker']}"
        assert row["kodolly"]["engine_url"] == f"https://127.0.0.1:{ports['engine']}"
        assert [name for name, port in ports.items() if speaks_plain_http(port)] == []
    text = log.read_text()
    assert f"listening on https://127.0.0.1:{ports['api']}" in text
    assert " ERROR " not in text


def test_up_serves_api_and_page_with_a_certificate_for_another_name(
    model: Path, tmp_path: Path
) -> None:
    """The world's name is in the certificate: page and supervisor still reach the API, over TLS."""
    files, log = make_certificate(tmp_path / "files", "chat.example"), tmp_path / "log"
    ports = {name: free_port() for name in ("controller", "worker", "api", "web")}
    flags = [f"--{name}-port={port}" for name, port in ports.items()]
    flags += ["--tls-cert", str(files.cert), "--tls-key", str(files.key)]
    command = (*KODOLLY, "up", "--home", str(tmp_path / "home"), "--model", str(model), *flags)
    with start(command, log=log) as up:
        wait_until(lambda: "chat  https://" in log.read_text(), START, what="page", process=up)
        trust = ssl.create_default_context(cafile=str(files.ca))
        trust.check_hostname = False
        assert answer(f"https://127.0.0.1:{ports['api']}", trust)
        assert not speaks_plain_http(ports["api"])
        assert not speaks_plain_http(ports["web"])
        assert up.stop(60) == 0


@pytest.mark.parametrize("command", ["controller", "worker", "api", "web", "up"])
def test_a_missing_file_is_one_sentence_at_the_start(command: str, tmp_path: Path) -> None:
    """It names flag and file, and the process ends with a failure, not with plain HTTP."""
    key = make_certificate(tmp_path).key
    flags = ("--tls-cert", str(tmp_path / "gone.pem"), "--tls-key", str(key))
    log = tmp_path / "log"
    with start((*KODOLLY, command, *flags), cwd=tmp_path, log=log) as process:
        assert process.popen.wait(60) == 1
    expected = f"kodolly {command}: --tls-cert: cannot read {tmp_path / 'gone.pem'}: No such file"
    assert log.read_text().startswith(expected)
    assert "Traceback" not in log.read_text()
