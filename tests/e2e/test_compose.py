"""docker-compose.yml on a real engine: from nothing to a Korean answer, scaled while it answers.

Uses whatever `docker` and DOCKER_HOST the environment gives. A folder of wheels that pip should
prefer comes from KODOLLY_WHEELS, else from pip's own PIP_FIND_LINKS.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import openai
import pytest
from support.compose_options import SERVICE_CLASSES, compose_variables

pytestmark = pytest.mark.compose

ROOT = Path(__file__).parents[2]
MODEL = "kodolly-ko-8m"
QUESTION = "대한민국의 수도는 어디인가요? 한 문장으로 답해 주세요. 🙂"
SERVICES = ("controller", "worker", "api", "web")
BUILD_LIMIT, UP_LIMIT, SCALE_LIMIT = 1500.0, 600.0, 400.0  # seconds; about a tenth is usual
LONG_ANSWER = 400  # tokens
CROWD = 6  # people who ask for long answers, so that every one of three workers is at work

ASK_CONTROLLER = """
import pathlib, urllib.request
token = pathlib.Path("/run/kodolly/token").read_text()
request = urllib.request.Request("http://127.0.0.1:21001/workers")
request.add_header("Authorization", f"Bearer {token}")
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""
STEAL = """
import pathlib, urllib.error, urllib.request
token = pathlib.Path("/run/kodolly/token").read_text()
request = urllib.request.Request("http://controller:21001/watch")
request.add_header("Authorization", f"Bearer {token}")
try:
    urllib.request.urlopen(request, timeout=10)
except urllib.error.HTTPError as error:
    print(error.code)
"""
INTRUDE = """
import urllib.error, urllib.request
try:
    urllib.request.urlopen("http://controller:21001/workers", timeout=10)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def say(text: str) -> None:
    """A line for whoever watches `make test-compose`."""
    sys.stdout.write(f"\n[compose] {text}")
    sys.stdout.flush()


def run(argv: Sequence[str], environment: Mapping[str, str], limit: float) -> str:
    """The standard output of a command that must succeed within `limit` seconds."""
    done = subprocess.run(
        argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit, check=False
    )
    assert done.returncode == 0, f"{' '.join(argv)}:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@dataclass(frozen=True)
class Stack:
    """One compose project of the file at the root, with images and ports of its own."""

    environment: Mapping[str, str]
    api_port: int
    web_port: int

    def compose(self, *args: str, limit: float = 120.0) -> str:
        """`docker compose ARGS`; its wall time is shown."""
        started = time.monotonic()
        out = run(["docker", "compose", *args], self.environment, limit)
        if args[0] in ("build", "up", "down"):
            say(f"{' '.join(args)}: {time.monotonic() - started:.0f} s")
        return out

    def containers(self, service: str) -> list[dict[str, Any]]:
        """What `docker inspect` says of a service's containers."""
        ids = self.compose("ps", "--all", "--quiet", service).split()
        if not ids:
            return []
        found: list[dict[str, Any]] = json.loads(
            run(["docker", "inspect", *ids], self.environment, 60)
        )
        return found

    def table(self) -> list[dict[str, Any]]:
        """The controller's rows: name, state, queue_length and more."""
        table = self.compose("exec", "-T", "controller", "python", "-c", ASK_CONTROLLER)
        rows: list[dict[str, Any]] = json.loads(table)["workers"]
        return rows

    def ready(self) -> set[str]:
        """Addresses of the ready workers; empty while any worker is not ready."""
        rows = self.table()
        return {r["name"] for r in rows} if all(r["state"] == "ready" for r in rows) else set()

    def scale(self, workers: int) -> None:
        """Changes the number of workers and waits until all are ready."""
        self.compose(
            "up", "--wait", "--no-build", "--scale", f"worker={workers}", limit=SCALE_LIMIT
        )

    def client(self) -> openai.OpenAI:
        """A client of the published port. It never retries: each failure must show."""
        url = f"http://127.0.0.1:{self.api_port}/v1"
        return openai.OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=180)


def engine_environment() -> dict[str, str]:
    """This process's environment without KoDolly's own settings, which would change the stack."""
    kept = ("KODOLLY_WHEELS", "KODOLLY_BASE_IMAGE")
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KODOLLY_", "COMPOSE_")) or name in kept
    }
    links = environment.get("PIP_FIND_LINKS", "")
    if Path(links).is_dir() and links:
        environment.setdefault("KODOLLY_WHEELS", links)
    return environment


def docker_or_skip(*args: str) -> None:
    """Skips the test unless `docker ARGS` succeeds."""
    try:
        done = subprocess.run(
            ["docker", *args], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"docker cannot be run: {error}")
    if done.returncode != 0:
        pytest.skip(f"`docker {' '.join(args)}` fails: {done.stderr.strip()[-300:]}")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def wait_for(condition: Callable[[], bool], what: str, limit: float = 120.0) -> None:
    """Polls until `condition()`; fails after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit:.0f} s: {what}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The whole stack, built and up with one worker; gone with its volumes afterwards."""
    docker_or_skip("compose", "version")
    docker_or_skip("version")
    api_port, web_port = free_ports(2)
    environment = engine_environment() | {
        "COMPOSE_PROJECT_NAME": f"kodolly-test-{secrets.token_hex(4)}",
        "KODOLLY_TAG": "test",
        "KODOLLY_API_PORT": str(api_port),
        "KODOLLY_WEB_PORT": str(web_port),
        "KODOLLY_WORKER_DRAIN_TIMEOUT": "240",  # a busy machine makes a token a second
        "KODOLLY_WORKER_STOP_GRACE": "600s",
        "OMP_NUM_THREADS": "1",
        "KODOLLY_API_PROCESSES": "2",
    }
    stack = Stack(environment, api_port, web_port)
    started = time.monotonic()
    try:
        stack.compose("build", limit=BUILD_LIMIT)
        try:
            stack.compose("up", "--wait", "--no-build", limit=UP_LIMIT)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{stack.compose('logs', '--tail', '40')}") from error
        yield stack
    finally:
        stack.compose("down", "--volumes", "--remove-orphans", limit=SCALE_LIMIT)
        say(f"all of it: {time.monotonic() - started:.0f} s\n")


def ask(client: openai.OpenAI, tokens: int) -> str:
    """A whole answer, greedy."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=tokens,
        temperature=0,
    )
    return answer.choices[0].message.content or ""


def ask_long(client: openai.OpenAI, user: int) -> None:
    """A long answer, streamed. Raises AnswerCutShort if it is not all there.

    A bare completion, as a chat's template would stop the small model, whose answers are short. Made
    to go on past its end it may well write half a character, so the text is not looked at.
    """
    stream = client.completions.create(
        model=MODEL,
        prompt=f"{user}번째 사람이 묻습니다. {QUESTION}",  # alike from the start would be one chat
        max_tokens=LONG_ANSWER,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    reason, made = "none", 0
    for chunk in stream:
        made = chunk.usage.completion_tokens if chunk.usage else made
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
    if (reason, made) != ("length", LONG_ANSWER):
        raise AnswerCutShort(f"{made} tokens, finish reason {reason}")


class AnswerCutShort(Exception):
    """A stream that ended before its time."""


@dataclass
class AnswerLoop:
    """People who each ask one question after the other, from `with` to its end."""

    stack: Stack
    question: Callable[[openai.OpenAI, int], object]
    people: int = 1
    answers: int = 0
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(self.people)
        for user in range(self.people):
            self._pool.submit(self._ask_on, user)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def _ask_on(self, user: int) -> None:
        with self.stack.client() as client:
            while not self._stop.is_set():
                try:
                    self.question(client, user)
                    self.answers += 1
                except (openai.OpenAIError, AnswerCutShort) as error:
                    self.failures.append(f"{time.strftime('%X')} {error!r}")
                self._stop.wait(0.2)

    def wait_for_more(self) -> None:
        """Until another two answers came for everybody."""
        goal = self.answers + 2 * self.people
        wait_for(lambda: self.answers >= goal or bool(self.failures), "two more answers", 300)


@pytest.mark.parametrize("service", SERVICE_CLASSES)
def test_a_value_in_an_env_file_reaches_its_container(service: str, tmp_path: Path) -> None:
    """Docker's own reading of the file: every option of the service's process, by its own name.

    The containers' own names stand before the hosts that an operator allows. Where a port is published
    compose says itself (`test_compose_doors.py`).
    """
    docker_or_skip("compose", "version")
    names = [name for name in compose_variables(service) if not name.endswith("PUBLISHED_ADDRESS")]
    file = tmp_path / "env"
    file.write_text("".join(f"{name}=7{index}\n" for index, name in enumerate(names)))
    flags = ["--profile", "gpu", "--env-file", str(file)]
    text = run(["docker", "compose", *flags, "config", "--format", "json"], plain_environment(), 60)
    environment = json.loads(text)["services"][service]["environment"]
    hosts = environment["KODOLLY_ALLOWED_HOSTS"]
    assert hosts.startswith("api,controller,web,")
    environment["KODOLLY_ALLOWED_HOSTS"] = hosts.rpartition(",")[2]

    assert {name: environment.get(name) for name in names} == {
        name: f"7{index}" for index, name in enumerate(names)
    }


def plain_environment() -> dict[str, str]:
    """As `engine_environment`, without anything that an env file sets as well."""
    kept = engine_environment()
    return {name: value for name, value in kept.items() if not name.startswith("KODOLLY_")}


@pytest.mark.parametrize(
    "profiles", [(), ("gpu",), ("observability",)], ids=["default", "gpu", "observability"]
)
def test_file_is_valid_with_every_profile(profiles: tuple[str, ...]) -> None:
    """Compose accepts the file with each of its profiles, with no preparation."""
    docker_or_skip("compose", "version")
    flags = [word for name in profiles for word in ("--profile", name)]
    run(["docker", "compose", *flags, "config", "--quiet"], engine_environment(), 60)


def test_korean_answer_through_the_published_port(stack: Stack) -> None:
    """A Korean question is answered, whole and streamed alike, with no broken character."""
    with stack.client() as client:
        whole = ask(client, 48)
        parts = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=48,
            temperature=0,
            stream=True,
        )
        streamed = "".join(
            choice.delta.content or "" for chunk in parts for choice in chunk.choices
        )
    say(f"answer: {whole!r}")
    assert whole.strip()
    assert "\ufffd" not in whole + streamed
    assert streamed == whole


def test_page_answers_on_its_port(stack: Stack) -> None:
    """The published web port serves the chat page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.web_port}/", timeout=30) as page:
        assert page.status == 200
        assert b"KoDolly" in page.read()


def test_only_page_and_api_are_published(stack: Stack) -> None:
    """Web and API are published on this machine's loopback, nothing else anywhere."""
    published = {
        (service, binding["HostIp"])
        for service in SERVICES
        for container in stack.containers(service)
        for bindings in container["NetworkSettings"]["Ports"].values()
        for binding in bindings or ()
    }
    assert published == {("api", "127.0.0.1"), ("web", "127.0.0.1")}


@pytest.mark.parametrize("service", SERVICES)
def test_containers_are_locked_down(stack: Stack, service: str) -> None:
    """Every process runs unprivileged, without capabilities, on a root it cannot write."""
    (container,) = stack.containers(service)
    assert container["Config"]["User"] == "10001:10001"
    host = container["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges" in host["SecurityOpt"]


def test_token_is_random_and_private(stack: Stack) -> None:
    """The first start makes a token that its own user alone can read and no setting shows."""
    look = "stat -c '%a %u' /run/kodolly/token; wc -c </run/kodolly/token; cat /run/kodolly/token"
    mode, length, token = stack.compose("exec", "-T", "api", "sh", "-c", look).splitlines()
    assert mode == "400 10001"
    assert int(length) == 64
    assert all(token not in json.dumps(stack.containers(service)) for service in SERVICES)


def test_controller_refuses_strangers(stack: Stack) -> None:
    """Without the token not even a container of the inner network reads the table."""
    assert stack.compose("exec", "-T", "api", "python", "-c", INTRUDE).strip() == "401"


def test_answers_keep_coming_while_workers_come_and_go(stack: Stack) -> None:
    """1 -> 3 -> 1 workers: three addresses register, and no request fails or is cut short."""
    with AnswerLoop(stack, lambda client, _: ask(client, 4)) as loop:
        stack.scale(3)
        wait_for(lambda: len(stack.ready()) == 3, "three ready workers")
        say(f"workers: {', '.join(sorted(stack.ready()))}")
        loop.wait_for_more()
        with AnswerLoop(stack, ask_long, CROWD) as crowd:
            wait_for(lambda: all(r["queue_length"] for r in stack.table()), "all three busy")
            stack.scale(1)
            wait_for(lambda: len(stack.ready()) == 1, "one worker left")
            crowd.wait_for_more()
        loop.wait_for_more()
    say(f"{loop.answers} short answers and {crowd.answers} long ones meanwhile")
    assert loop.failures + crowd.failures == []


@pytest.mark.parametrize("service", SERVICES)
def test_doctor_misses_nothing_inside_a_container(stack: Stack, service: str) -> None:
    """Whatever runs there has what it needs, and its report says so with exit status 0."""
    report = stack.compose("exec", "-T", service, "kodolly", "doctor")
    assert "one of KoDolly's images" in report
    assert "missing" not in report


@pytest.mark.parametrize("service", SERVICES)
def test_containers_have_limits(stack: Stack, service: str) -> None:
    """Memory and processes are bounded; the CPU worker's memory is its model's affair."""
    (container,) = stack.containers(service)
    host = container["HostConfig"]
    assert 0 < host["PidsLimit"] <= 4096
    assert (host["Memory"] > 0) is (service != "worker")


def test_no_container_holds_a_secret_of_another(stack: Stack) -> None:
    """The worker's token is not the fleet's, and reads no table; the page has no token at all."""
    read = "import hashlib,sys; print(hashlib.sha256(open(sys.argv[1],'rb').read()).hexdigest())"
    digests = {
        service: stack.compose("exec", "-T", service, "python3", "-c", read, "/run/kodolly/token")
        for service in ("controller", "worker", "api")
    }
    assert digests["controller"] == digests["api"] != digests["worker"]
    look = stack.compose("exec", "-T", "web", "ls", "-A", "/run/kodolly")
    assert look.strip() == ""
    assert stack.compose("exec", "-T", "worker", "python3", "-c", STEAL).strip() == "403"


@contextmanager
def worker_alone(stack: Stack, **environment: str) -> Iterator[Stack]:
    """A second project of the same images, for a controller and a worker."""
    name = f"kodolly-test-{secrets.token_hex(4)}"
    own = dict(stack.environment) | {"COMPOSE_PROJECT_NAME": name} | environment
    spare = Stack(own, *free_ports(2))
    try:
        yield spare
    finally:
        spare.compose("down", "--volumes", "--remove-orphans", "--timeout", "5", limit=SCALE_LIMIT)


def failure_of_up(spare: Stack, *flags: str) -> tuple[float, str]:
    """How long the worker ran until `up --wait` failed (s), and what its logs say."""
    done = subprocess.run(
        ["docker", "compose", *flags, "up", "--wait", "--no-build", "worker"],
        cwd=ROOT, env=spare.environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    failed = datetime.now(UTC)
    assert done.returncode != 0, done.stderr
    logs = spare.compose("logs", "--no-log-prefix", "--timestamps", "worker")
    stamp = re.search(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", logs)
    assert stamp, logs
    first = datetime.fromisoformat(stamp[0]).replace(tzinfo=UTC)
    return (failed - first).total_seconds(), logs


def test_an_engine_that_ends_again_and_again_fails_the_start(stack: Stack) -> None:
    """In its second minute, not after the 900 s that a large model may take to load."""
    with worker_alone(stack, KODOLLY_WORKER_ENGINE_ARGS="--no-such-flag") as spare:
        seconds, logs = failure_of_up(spare)
    say(f"up --wait failed {seconds:.0f} s after the worker's first line")
    assert seconds < 120
    assert "times without a token" in logs or "unrecognized arguments" in logs


def test_a_worker_with_a_wrong_token_is_not_healthy(stack: Stack, tmp_path: Path) -> None:
    """Its check fails, and says who refuses it."""
    override = tmp_path / "override.yml"
    override.write_text("services: {worker: {environment: {KODOLLY_TOKEN: wrong-token}}}\n")
    with worker_alone(stack) as spare:
        files = ("-f", str(ROOT / "docker-compose.yml"), "-f", str(override))
        seconds, logs = failure_of_up(spare, *files)
        (container,) = spare.containers("worker")
    say(f"up --wait failed {seconds:.0f} s after the worker's first line")
    assert container["State"]["Health"]["Status"] == "unhealthy"
    reasons = [entry["Output"] for entry in container["State"]["Health"]["Log"]]
    assert any("the controller refuses this worker" in reason for reason in reasons), reasons
    assert "wrong-token" not in logs + "".join(reasons)


def test_a_broken_model_is_a_sentence(stack: Stack, tmp_path: Path) -> None:
    """The container ends with the file's name, and `up --wait` fails."""
    tmp_path.chmod(0o755)
    (tmp_path / "config.json").write_text("[]")
    with worker_alone(stack, KODOLLY_MODEL=str(tmp_path)) as spare:
        seconds, logs = failure_of_up(spare)
    say(f"up --wait failed {seconds:.0f} s after the worker's first line")
    assert "/models/own/config.json: a JSON object is expected" in logs
    assert "Traceback" not in logs


@pytest.mark.parametrize("service", SERVICES)
def test_killed_process_comes_back(stack: Stack, service: str) -> None:
    """After kill -9 of a container's main process the container is healthy again and chat works."""
    (before,) = stack.containers(service)
    kill_on_this_machine(before["State"]["Pid"])

    def back() -> bool:
        (now,) = stack.containers(service)
        health = now["State"].get("Health", {}).get("Status")
        return bool(now["RestartCount"] > before["RestartCount"] and health == "healthy")

    started = time.monotonic()
    wait_for(back, f"{service} is healthy again", SCALE_LIMIT)
    say(f"{service}: healthy {time.monotonic() - started:.0f} s after kill -9")
    with stack.client() as client:
        assert ask(client, 4)


def kill_on_this_machine(pid: int) -> None:
    """SIGKILL for a container's first process; skips where the engine runs on another machine."""
    try:
        if "init" not in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8"):
            pytest.skip("the Docker engine runs on another machine")
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        pytest.skip(f"cannot kill a container's process from here: {error}")
