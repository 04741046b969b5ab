"""What storing costs: the same Responses stream with store: false, and stored in SQLite and PostgreSQL.

One run, all before one engine, the kinds in turn in every round. Printed are CPU a token of the API process
while STREAMS streams run at PACE, the time to the first token of one stream at a time, and how late a later token
comes: against its place in the engine's own schedule, counted from the request. The streams begin within two
seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from benchmarks.gateway.environments import ROOT
from benchmarks.gateway.plan import MODEL
from benchmarks.gateway.processes import cpu_seconds, free_port, running, wait_for, wait_for_port

STREAMS, TOKENS, PACE = 100, 200, 1 / 30
SPREAD = (
    2.0  # seconds within which the streams begin: a burst of beginnings is no later token's delay
)
FIRSTS = 40  # requests of one token each, one at a time
CHAT, EPHEMERAL, SQLITE, POSTGRES = "chat", "store: false", "SQLite", "PostgreSQL"
DELTA = {
    True: re.compile(rb'"content":"[^"]'),
    False: re.compile(rb"event: response\.output_text\.delta"),
}


@dataclass(slots=True)
class Kind:
    """One way to ask."""

    name: str
    port: int
    pid: int
    store: bool | None  # None: a chat

    def request(self, tokens: int) -> bytes:
        """The whole HTTP request."""
        body: dict[str, Any] = {"model": MODEL, "stream": True}
        if self.store is None:
            messages = [{"role": "user", "content": "안녕"}]
            body |= {"messages": messages, "max_tokens": tokens}
        else:
            body |= {"input": "안녕", "max_output_tokens": tokens, "store": self.store}
        data = json.dumps(body).encode()
        path = "/v1/chat/completions" if self.store is None else "/v1/responses"
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


class Client(asyncio.Protocol):
    """One request; `times`: when each delta came, in seconds after it was sent."""

    def __init__(self, request: bytes, delta: re.Pattern[bytes]) -> None:
        self.times: list[float] = []
        self.ok = False
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request, self._delta = request, delta
        self._begin = 0.0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._begin = time.perf_counter()
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter() - self._begin
        self.times += [now] * len(self._delta.findall(data))
        self._tail = (self._tail + data)[-20_000:]

    def connection_lost(self, exc: Exception | None) -> None:
        ends = (b"[DONE]", b"response.completed", b"response.incomplete")
        self.ok = any(end in self._tail for end in ends)
        if not self.done.done():
            self.done.set_result(None)


@dataclass
class Figures:
    """What was measured of one kind."""

    cpu: list[float] = field(default_factory=list)  # microseconds a token, one for each round
    first: list[float] = field(default_factory=list)  # seconds
    late: list[float] = field(default_factory=list)  # seconds
    failed: int = 0


async def ask(kind: Kind, tokens: int, after: float = 0.0) -> Client:
    """One stream, to its end. `after`: seconds to wait before it."""
    await asyncio.sleep(after)
    loop = asyncio.get_running_loop()
    client = Client(kind.request(tokens), DELTA[kind.store is None])
    await loop.create_connection(lambda: client, "127.0.0.1", kind.port)
    async with asyncio.timeout(180):
        await client.done
    return client


async def measure(kinds: list[Kind], rounds: int) -> dict[str, Figures]:
    """All kinds, in each round in another order."""
    figures: dict[str, Figures] = defaultdict(Figures)
    for kind in kinds:  # warm
        await asyncio.gather(*(ask(kind, 8) for _ in range(16)))
    for number in range(rounds):
        order = kinds[number % len(kinds) :] + kinds[: number % len(kinds)]
        for kind in order:
            before = cpu_seconds([kind.pid])
            clients = await asyncio.gather(
                *(ask(kind, TOKENS, index / STREAMS * SPREAD) for index in range(STREAMS))
            )
            spent = cpu_seconds([kind.pid]) - before
            mine = figures[kind.name]
            mine.cpu.append(spent / (STREAMS * TOKENS) * 1e6)
            mine.failed += sum(not client.ok for client in clients)
            for client in clients:
                mine.late += [
                    at - index * PACE for index, at in enumerate(client.times) if index > 0
                ]
        for _ in range(FIRSTS):
            for kind in order:
                client = await ask(kind, 2)
                figures[kind.name].first.append(client.times[0] if client.times else 1e9)
    return figures


@contextlib.contextmanager
def kinds(folder: Path) -> Iterator[list[Kind]]:
    """The processes of the run."""
    with contextlib.ExitStack() as stack:
        engine, controller = free_port(), free_port()
        python = [sys.executable, "-m"]
        command = [*python, "kodolly", "controller", "--port", str(controller)]
        child = stack.enter_context(running("controller", command, folder, {}))
        wait_for_port(controller, child)
        script = json.dumps({"length": 4096, "token_delay": PACE, "tokens": ["가 ", "나 ", "다 "]})
        command = [*python, "support.scripted_engine", "--port", str(engine), "--model", MODEL]
        command += ["--script", script, "--register-kodolly", f"http://127.0.0.1:{controller}"]
        environment = {"PYTHONPATH": str(ROOT / "tests")}
        child = stack.enter_context(running("engine", command, folder, environment))
        wait_for_port(engine, child)

        def api(name: str, url: str) -> tuple[int, int]:
            port = free_port()
            command = [*python, "kodolly", "api", "--port", str(port), "--store", url]
            command += ["--controller", f"http://127.0.0.1:{controller}"]
            child = stack.enter_context(running(name, command, folder, {}))
            wait_for(f"http://127.0.0.1:{port}/v1/models", f'"id": "{MODEL}"', child)
            return port, child.pid

        one = api("sqlite", f"sqlite:///{folder}/store.sqlite3")
        candidates = [
            Kind(CHAT, *one, None),
            Kind(EPHEMERAL, *one, False),
            Kind(SQLITE, *one, True),
        ]
        if (url := _postgres(stack)) is not None:
            candidates.append(Kind(POSTGRES, *api("postgres", url), True))
        yield candidates


def _postgres(stack: contextlib.ExitStack) -> str | None:
    """The URL of a new database; None where there is no server to be had."""
    sys.path.insert(0, str(ROOT / "tests"))
    try:
        from support.postgres import running_postgres

        server = stack.enter_context(running_postgres())
        return asyncio.run(server.new_database())
    except (ImportError, AssertionError, OSError) as error:
        print(f"PostgreSQL is not in this run: {error}", file=sys.stderr)
        return None


def table(figures: dict[str, Figures]) -> str:
    """All figures, each beside that of store: false."""
    base = figures[EPHEMERAL]
    cpu, first, late = (statistics.median(each) for each in (base.cpu, base.first, base.late))
    lines = [
        f"{STREAMS} streams of {TOKENS} tokens at {1 / PACE:.0f} tokens/s on one API process",
        "",
        "| Responses stream | CPU a token, us | ratio | first token, ms p50 | more | later tokens, ms p50 later |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, mine in figures.items():
        used, begin = statistics.median(mine.cpu), statistics.median(mine.first)
        behind = statistics.median(mine.late) - late
        lines.append(
            f"| {name} | {used:.1f} | {used / cpu:.2f} | {begin * 1e3:.2f} |"
            f" {(begin - first) * 1e3:+.2f} | {behind * 1e3:+.1f} |"
        )
        if mine.failed:
            lines.append(f"| {name} | {mine.failed} streams were not whole | | | | |")
    return "\n".join(lines)


def compare_stored(rounds: int, out: Path) -> int:
    """Runs it, prints the table and writes it to `out`; 1 if a stream was not whole."""
    with tempfile.TemporaryDirectory(prefix="stored-") as place, kinds(Path(place)) as candidates:
        figures = asyncio.run(measure(candidates, rounds))
    text = table(figures)
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / "stored.md").write_text(text + "\n")
    return int(any(each.failed for each in figures.values()))
