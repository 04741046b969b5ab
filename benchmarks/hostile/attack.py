"""One attack, in a process of its own: reads what to do as JSON, prints what came of it as JSON."""

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from support.poison import poison

from benchmarks.hostile.plan import BODY_TIMEOUT, HEAD_TIMEOUT, MODEL, SEED, Plan
from benchmarks.hostile.raw import Target, case
from kodolly.http import descriptors

ANSWER = 0.25  # seconds to wait for an answer to a raw case, which may be only a part of a request
PIECE = 64 * 1024
VOCABULARY = 1000
# Errors that say what is full and when to come again. Any other 5xx is a failure of the attacked process.
STATED = (b"too_many_connections", b"no_worker", b"overloaded", b"out_of_file_descriptors")
MIB = 2**20


@dataclass(slots=True)
class Result:
    """What an attack brought about. `unstated`: 5xx without a reason, by process, with an example of each."""

    statuses: Counter[str] = field(default_factory=Counter)
    unstated: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    def note(self, target: str, answer: bytes, sent: bytes) -> None:
        """Counts an answer by its status."""
        if not answer:
            self.statuses["none"] += 1
            return
        status = answer.split(b" ", 2)[1:2]
        code = status[0][:3].decode("ascii", "replace") if status else "odd"
        self.statuses[code] += 1
        if code.startswith("5") and not any(reason in answer for reason in STATED):
            self.unstated[f"{target} {code}"] += 1
            if len(self.examples) < 8:
                self.examples.append(f"{target}: {sent[:600]!r} -> {answer[:300]!r}")


@dataclass(frozen=True, slots=True)
class Attack:
    """Whom to attack, and how much."""

    plan: Plan
    targets: list[Target]
    result: Result = field(default_factory=Result)

    async def raw(self) -> None:
        """Malformed and odd requests to all processes in turn."""
        numbers = iter(range(self.plan.raw))

        async def work() -> None:
            for number in numbers:
                target = self.targets[number % len(self.targets)]
                data = case(target, number, SEED)
                self.result.note(target.name, await exchange(target, data), data)

        await asyncio.gather(*(work() for _ in range(self.plan.at_once)))

    async def headers(self) -> None:
        """Heads without end: one long value, many fields, one long line."""
        begins = (b"GET / HTTP/1.1\r\nHost: x\r\nLong: ", b"GET / HTTP/1.1\r\n", b"GET /")
        piece = {begins[1]: b"".join(b"f%d: x\r\n" % n for n in range(PIECE // 10))}

        async def flood(target: Target, begin: bytes) -> None:
            sent, answer = 0, b""
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(target.host, target.port)
                try:
                    writer.write(begin)
                    while sent < self.plan.header_bytes and not reader.at_eof():
                        writer.write(piece.get(begin, b"a" * PIECE))
                        await writer.drain()
                        sent += PIECE
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.001):
                                answer += await reader.read(PIECE)
                    answer += await reader.read(PIECE)
                finally:
                    writer.close()
            self.result.note(target.name, answer, begin)
            worst = self.result.notes.get("most MiB taken", 0.0)
            self.result.notes["most MiB taken"] = max(worst, round(sent / MIB, 1))

        await asyncio.gather(*(flood(t, begin) for t in self.targets for begin in begins))

    async def idle(self) -> None:
        """Connections that ask nothing."""
        made = await asyncio.gather(
            *(self._open(self.targets[n % len(self.targets)]) for n in range(self.plan.idle))
        )
        self.result.notes["opened"] = sum(pair is not None for pair in made)
        await asyncio.sleep(self.plan.hold)
        for pair in made:
            if pair is not None:
                pair[1].close()

    async def slow(self) -> None:
        """Heads and bodies that come a byte at a time: how many were closed, and the latest."""
        head = b"GET / HTTP/1.1\r\nHost: x\r\nSlow: "
        body = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
        loop = asyncio.get_running_loop()
        ends: list[float] = []

        async def drip(number: int) -> None:
            target = self.targets[number % len(self.targets)]
            pair = await self._open(target)
            if pair is None:
                return
            reader, writer = pair
            begin = loop.time()
            with contextlib.suppress(OSError):
                writer.write(body if number % 2 else head)
                while loop.time() - begin < self.plan.hold + BODY_TIMEOUT and not reader.at_eof():
                    writer.write(b"a")
                    await writer.drain()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            self.result.note(target.name, await reader.read(PIECE), b"slow")
            ends.append(loop.time() - begin)
            writer.close()

        await asyncio.gather(*(drip(number) for number in range(self.plan.slow)))
        limit = max(HEAD_TIMEOUT, BODY_TIMEOUT) + 5
        self.result.notes["closed in time"] = sum(end <= limit for end in ends)
        self.result.notes["latest after s"] = round(max(ends, default=0.0), 1)

    async def prompts(self) -> None:
        """Prompts of megabytes, all at once."""
        text = "안녕하세요 세계 " * (self.plan.prompt_bytes // 23)
        bodies: list[dict[str, Any]] = [
            {"messages": [{"role": "user", "content": text}]} if n % 2 else {"prompt": text}
            for n in range(self.plan.prompts)
        ]
        await asyncio.gather(*(self._ask(body) for body in bodies))

    async def poison(self) -> None:
        """Sampling values that make arithmetic break down."""
        for _ in range(self.plan.poison_rounds):
            chat = {"messages": [{"role": "user", "content": "독"}]}
            await asyncio.gather(*(self._ask(chat | values) for values in poison(VOCABULARY)))

    async def _ask(self, body: dict[str, Any]) -> None:
        api = next(target for target in self.targets if target.name == "api")
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        data = json.dumps({"model": MODEL, "max_tokens": 4, **body}, ensure_ascii=False).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {api.host}:{api.port}\r\nConnection: close\r\n"
            f"Authorization: Bearer {api.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        self.result.note("api", await exchange(api, head.encode() + data, 120.0), data[:300])

    async def _open(
        self, target: Target
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        try:
            return await asyncio.open_connection(target.host, target.port)
        except OSError:
            self.result.statuses["not connected"] += 1
            return None


async def exchange(target: Target, data: bytes, timeout: float = ANSWER) -> bytes:
    """The first bytes of the answer to `data`; b"" if none came within `timeout` seconds."""
    try:
        reader, writer = await asyncio.open_connection(target.host, target.port)
    except OSError:
        return b""
    answer = b""
    try:
        writer.write(data)
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(timeout):
                answer = await reader.read(PIECE)
    finally:
        writer.transport.abort()
    return answer


async def main() -> None:
    """Does the attack that standard input describes."""
    descriptors.raise_limit()
    os.nice(
        10
    )  # an attacker comes from another machine: here it must not take the cores from its victim
    order = json.load(sys.stdin)
    attack = Attack(Plan(**order["plan"]), [_target(each) for each in order["targets"]])
    await getattr(attack, order["attack"])()
    result = attack.result
    out = {
        "statuses": dict(result.statuses),
        "unstated": dict(result.unstated),
        "examples": result.examples,
        "notes": result.notes,
    }
    sys.stdout.write(json.dumps(out))


def _target(fields: dict[str, Any]) -> Target:
    return Target(**fields | {"gets": tuple(fields["gets"]), "posts": tuple(fields["posts"])})


if __name__ == "__main__":
    asyncio.run(main())
