"""`kodolly up`: the whole stack under one supervisor, with a tiny real model."""

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import psutil  # type: ignore[import-untyped]
import pytest
from support import prometheus
from support.processes import ENGINE_OFFSET, free_port, wait_until
from support.tiny_models import make_tiny_llama

pytestmark = pytest.mark.stack

PROCESSES = ("controller", "worker", "api", "web")
START = 180.0
TOKEN = "a-token-of-this-test"
# In the environment of whoever starts it; each has one reader.
SECRETS = {
    "KODOLLY_WORKER_ENGINE_KEY": "secret-of-an-engine",
    "KODOLLY_WEB_API_KEY": "secret-of-the-page",
    "HF_TOKEN": "secret-of-the-hub",
    "OPENAI_API_KEY": "secret-of-another-program",
}


class Up:
    """A running `kodolly up`."""

    def __init__(self, home: Path, model: Path, log: Path) -> None:
        self.home, self.log = home, log
        self.ports = {name: free_port() for name in PROCESSES}
        flags = [f"--{name}-port={port}" for name, port in self.ports.items()]
        command = [
            sys.executable,
            "-m",
            "kodolly",
            "up",
            "--home",
            str(home),
            "--model",
            str(model),
            *("--token", TOKEN, "--log-format", "json"),
        ]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *flags], stdout=output, stderr=output, env=os.environ | SECRETS
            )
        self._prober = self.client()  # one for all looks: making a client takes longer than asking

    def state(self) -> dict[str, Any]:
        """Its up.json."""
        with suppress(OSError, ValueError):
            return dict(json.loads((self.home / "up.json").read_text())["processes"])
        return {}

    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: entry["pid"] for name, entry in self.state().items()}

    def client(self) -> openai.OpenAI:
        """An OpenAI client of its API."""
        url = f"http://127.0.0.1:{self.ports['api']}/v1"
        return openai.OpenAI(base_url=url, api_key="none", timeout=30, max_retries=0)

    def close(self) -> None:
        """Closes what it asked with; the processes go on."""
        self._prober.close()

    def answers(self) -> bool:
        """Whether a chat gets through."""
        try:
            model = self._prober.models.list().data[0].id
            answer = self._prober.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "안녕하세요?"}],
                max_tokens=4,
            )
        except (openai.APIError, IndexError):
            return False
        return answer.choices[0].message.content is not None

    def page(self) -> bool:
        """Whether the page is served."""
        try:
            url = f"http://127.0.0.1:{self.ports['web']}/"
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    home = tmp_path_factory.mktemp("home")
    model = home / "tiny-llama"
    make_tiny_llama(model)
    running = Up(home, model, home / "up.log")
    try:
        wait_until(lambda: running.page() and running.answers(), timeout=START)
        yield running
    finally:
        running.close()
        running.process.send_signal(signal.SIGINT)
        running.process.wait(60)


def descendants(pid: int) -> set[int]:
    """Every process below `pid`."""
    found: set[int] = set()
    pending = [pid]
    while pending:
        here = pending.pop()
        with suppress(OSError):
            for task in Path(f"/proc/{here}/task").iterdir():
                children = {int(c) for c in (task / "children").read_text().split()}
                pending += children - found
                found |= children
    return found


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_it_says_where_to_chat(up: Up) -> None:
    """Once everything is ready the terminal shows the page's and the API's address."""
    wait_until(lambda: "chat" in up.log.read_text())

    text = up.log.read_text()
    assert f"http://127.0.0.1:{up.ports['web']}" in text
    assert f"http://127.0.0.1:{up.ports['api']}/v1" in text
    assert all(f"{name} " in text for name in PROCESSES)


def test_its_common_flags_reach_every_process(up: Up) -> None:
    """The token given to `up` guards the controller; every log is in the format asked for."""
    url = f"http://127.0.0.1:{up.ports['controller']}/list_models"
    with pytest.raises(urllib.error.HTTPError, match="401") as refusal:
        urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=5)
    refusal.value.close()

    for name in ("controller", "worker", "api"):
        log = up.home / "logs" / f"{name}.log"
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        assert all(row["level"] for row in rows), name
        loggers = {row["logger"] for row in rows}
        assert ("engine" in loggers) is (name == "worker"), "an engine's lines are JSON too"
        assert TOKEN not in log.read_text()
    for pid in up.pids().values():
        assert TOKEN not in Path(f"/proc/{pid}/cmdline").read_text()


def test_no_process_holds_a_secret_of_another(up: Up) -> None:
    """The environment of every process below the supervisor, its leash's and its engine's too."""
    keys = set()
    seen = set()
    for pid in descendants(up.process.pid):
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            environ = Path(f"/proc/{pid}/environ").read_bytes().decode()
            names = [*PROCESSES, "kodolly.engines.transformers"]
            kind = next((word for word in reversed(words) if word in names), "other")
            seen.add(kind)
            secrets = {v for v in (*SECRETS.values(), TOKEN) if v in environ}
            assert secrets == EXPECTED_SECRETS[kind], (kind, words)
            if "VLLM_API_KEY=" in environ:
                keys.add(kind)
    assert seen == set(EXPECTED_SECRETS)
    assert keys == {"kodolly.engines.transformers"}


EXPECTED_SECRETS = {
    "controller": {TOKEN},
    "worker": {TOKEN, "secret-of-an-engine", "secret-of-the-hub"},
    "kodolly.engines.transformers": {"secret-of-the-hub"},
    "api": {TOKEN},
    "web": {"secret-of-the-page"},
}


def test_state_and_logs_are_private(up: Up) -> None:
    """Nobody else on the machine reads up.json or a log."""
    logs = up.home / "logs"
    assert stat.S_IMODE(logs.stat().st_mode) == 0o700
    files = [up.home / "up.json", *logs.iterdir()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize("script", ["chat.py", "stream.py"])
def test_the_examples_talk_to_it(up: Up, script: str) -> None:
    """The scripts of examples/ get an answer by the `openai` client, from an argument or typed in."""
    env = os.environ | {"OPENAI_BASE_URL": f"http://127.0.0.1:{up.ports['api']}/v1"}
    file = Path(__file__).resolve().parents[2] / "examples" / script
    words = ["안녕하세요?"] if script == "chat.py" else []
    done = subprocess.run(
        [sys.executable, file, *words],
        input="안녕하세요?\n", env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip("> \n")


CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "대한민국의 수도는 어디인가요? 🙂"}],
    "max_tokens": 24,
    "temperature": 0,
}


def test_the_sync_client_streams_what_it_gets_whole(up: Up) -> None:
    """openai's client: concatenated deltas equal the non-streamed text at temperature 0."""
    with up.client() as api:
        body = CHAT | {"model": api.models.list().data[0].id}
        whole = api.chat.completions.create(**body)
        deltas = [
            chunk.choices[0].delta.content or ""
            for chunk in api.chat.completions.create(**body, stream=True)
            if chunk.choices
        ]

    assert "".join(deltas) == whole.choices[0].message.content
    assert "\ufffd" not in "".join(deltas)


async def test_the_async_client_does_too(up: Up) -> None:
    """The same through AsyncOpenAI, with usage asked for, for text completions as well."""
    url = f"http://127.0.0.1:{up.ports['api']}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as api:
        model = (await api.models.list()).data[0].id
        body: dict[str, Any] = {
            "model": model,
            "prompt": "안녕",
            "max_tokens": 12,
            "temperature": 0,
        }
        whole = await api.completions.create(**body)
        stream = await api.completions.create(
            **body, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]

    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


@pytest.mark.skipif(not prometheus.is_installed(), reason="needs Debian's package prometheus")
def test_every_query_of_dashboard_and_alerts_finds_series(up: Up, tmp_path: Path) -> None:
    """A real Prometheus scrapes all that runs; a query without a series would be a misspelt one."""
    with prometheus.scraping(tmp_path, up.ports, TOKEN) as server:
        jobs = {f"kodolly-{each}": "" for each in (*PROCESSES, "engine")}
        with suppress(AssertionError):
            wait_until(lambda: server.targets() == jobs, timeout=60)
        assert server.targets() == jobs
        client = up.client()
        model = client.models.list().data[0].id
        messages: Any = [{"role": "user", "content": "안녕하세요?"}]
        for _ in client.chat.completions.create(
            model=model, messages=messages, max_tokens=8, stream=True
        ):
            pass
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nowhere", messages=messages)
        client.close()
        queries = [*prometheus.dashboard_queries(), *prometheus.alert_selectors()]

        def empty() -> list[str]:
            return [query for query in queries if not server.query(query)]

        wait_until(lambda: not empty(), timeout=90, what="every query has series")
        assert not server.query('ALERTS{severity="critical"}')


@pytest.mark.parametrize("face", [*PROCESSES, "engine"])
@pytest.mark.parametrize("where", ["head", "trailers"])
def test_a_flood_of_headers_is_refused_without_a_key(up: Up, face: str, where: str) -> None:
    """40 MiB of header on any face: 431 long before its end, and the process does not grow."""
    port = up.ports["worker"] + ENGINE_OFFSET if face == "engine" else up.ports[face]
    pid = next(c.pid for c in psutil.net_connections("tcp") if listens(c, port))
    begin = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if where == "trailers":
        begin += b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    before = psutil.Process(pid).memory_info().rss
    sent, answer, ended = 0, b"", False
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(begin + b"Long: ")
        with suppress(ConnectionError):  # it is closed while we still write
            while not ended and sent < 40 * 2**20:
                connection.sendall(b"a" * 8192)
                sent += 8192
                if select.select([connection], [], [], 0.02)[0]:
                    answer += (part := connection.recv(4096))
                    ended = not part
    assert sent <= 128 * 1024
    assert b"HTTP/1.1 431 " in answer
    assert psutil.Process(pid).memory_info().rss - before < 8 * 2**20


def listens(connection: Any, port: int) -> bool:
    return bool(connection.status == psutil.CONN_LISTEN and connection.laddr.port == port)


@pytest.mark.parametrize("victim", PROCESSES)
def test_kill_9_of_one_process(up: Up, victim: str) -> None:
    """SIGKILL of any one process: the others keep running, it comes back, the chat goes on."""
    wait_until(lambda: all(up.pids().get(name) for name in PROCESSES))
    before = up.state()
    os.kill(before[victim]["pid"], signal.SIGKILL)

    wait_until(lambda: up.pids().get(victim) not in (0, None, before[victim]["pid"]), timeout=START)
    wait_until(lambda: up.page() and up.answers(), timeout=START)

    after = up.state()
    assert after[victim]["restarts"] == before[victim]["restarts"] + 1
    assert {n: after[n]["pid"] for n in PROCESSES if n != victim} == {
        n: before[n]["pid"] for n in PROCESSES if n != victim
    }


def test_a_taken_port_is_one_clear_line(up: Up, tmp_path: Path) -> None:
    """A second `up` on the same ports names the port and the flag that moves it."""
    flags = [f"--{name}-port={port}" for name, port in up.ports.items()]
    done = subprocess.run(
        [sys.executable, "-m", "kodolly", "up", "--home", str(tmp_path), *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "--controller-port" in done.stderr or "--api-port" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_ctrl_c_leaves_no_process_behind(up: Up) -> None:
    """SIGINT stops everything, engine included, and exits 0. Runs last: it ends the stack."""
    family = descendants(up.process.pid)
    assert len(family) >= len(PROCESSES) * 2 + 1  # a leash each, and the engine

    up.process.send_signal(signal.SIGINT)

    assert up.process.wait(60) == 0
    wait_until(lambda: not any(map(runs, family)))
    assert not (up.home / "up.json").exists()
