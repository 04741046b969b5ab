"""The clients: each keeps one call open, reads it in its own way, judges it, and asks again."""

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.chaos.asks import Ask
from benchmarks.chaos.checks import Answer, judge, read_stream, read_whole
from benchmarks.soak.asks import Questions, Visit
from benchmarks.soak.plan import SILENCE

EXAMPLES = 10
# A slow reader's pace, and a socket so small that what it has not read waits at the API.
SIP, PAUSE, SMALL = 4096, 0.25, 8192
HURRY = 0.05  # seconds an event of a left call takes at most, for the calls that are not streamed


@dataclass(slots=True)
class Crowd:
    """All clients of one API, and what they have counted."""

    url: str
    keys: Sequence[str]
    open: int = 0
    ended: Counter[str] = field(default_factory=Counter)  # stream, whole, left -> calls
    events: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    stopping: bool = False

    async def fill(self, calls: int, streams: int, questions: Questions) -> None:
        """So many calls at least, which are not counted; all clients have left at its end."""
        running = asyncio.create_task(self.run(streams, questions))
        while self.ended.total() < calls and not self.errors and not running.done():
            await asyncio.wait([running], timeout=0.2)
        self.stopping = True
        await running
        self.stopping, self.events = False, 0
        self.ended.clear()

    async def run(self, streams: int, questions: Questions) -> None:
        """Until `stopping`; then every client finishes its call."""
        async with _session() as session, _session(slow=True) as slow:

            async def client(slot: int) -> None:
                await asyncio.sleep(slot * 0.02)
                for visit in questions.of(slot):
                    await self._visit(slot, visit, slow if visit.slow else session)
                    if self.stopping:
                        return

            await asyncio.gather(*(client(slot) for slot in range(streams)))

    async def _visit(self, slot: int, visit: Visit, session: aiohttp.ClientSession) -> None:
        """One call, asked, read and judged."""
        self.open += 1
        try:
            answer, left = await self._ask(slot, visit, session)
        finally:
            self.open -= 1
        wrong = _wrong(visit.ask, answer, left)
        if wrong:
            self.errors[f"{wrong[0]} ({visit.ask.name})"] += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(f"{visit.ask.name}: {', '.join(wrong)}")
            return
        streamed = "stream" if visit.ask.body.get("stream") else "whole"
        self.ended["left" if left else streamed] += 1

    async def _ask(
        self, slot: int, visit: Visit, session: aiohttp.ClientSession
    ) -> tuple[Answer, bool]:
        """What the client got, and whether it went before the end."""
        raw, left = bytearray(), False
        streamed = bool(visit.ask.body.get("stream"))
        hurry = visit.leaves * HURRY if visit.leaves and not streamed else None
        try:
            async with (
                asyncio.timeout(hurry),
                session.post(
                    self.url + visit.ask.path,
                    json=visit.ask.body,
                    headers={"Authorization": f"Bearer {self.keys[slot % len(self.keys)]}"},
                ) as response,
            ):
                if response.status != 200:
                    return Answer(error=f"status {response.status}"), False
                left = await self._read(response, visit, raw)
        except TimeoutError:
            if hurry is None:
                return Answer(error="silent for too long"), False
            return Answer(), True
        except (aiohttp.ClientError, ConnectionError) as failure:
            return Answer(error=f"broken connection: {type(failure).__name__}"), False
        if left:  # half an event is no fault of the API's then
            del raw[raw.rfind(b"\n\n") + 2 :]
        return (read_stream(bytes(raw)) if streamed else read_whole(bytes(raw))), left

    async def _read(self, response: aiohttp.ClientResponse, visit: Visit, raw: bytearray) -> bool:
        while chunk := await (
            response.content.read(SIP) if visit.slow else response.content.readany()
        ):
            raw += chunk
            self.events += chunk.count(b"\n\n")
            if visit.slow:
                await asyncio.sleep(PAUSE)
            if visit.leaves is not None and raw.count(b"\n\n") >= visit.leaves:
                response.close()
                return True
        return False


def _wrong(ask: Ask, answer: Answer, left: bool) -> list[str]:
    """What is wrong with an answer; one that was left is right as far as it went."""
    if left and answer.error in (None, "cut off"):
        answer.error = "left"
    elif answer.error or not answer.choices:
        return [answer.error or "no answer"]
    verdict = judge(ask, answer)
    counts = ("lost", "doubled", "other", "lost_tokens", "doubled_tokens")
    bad = [f"{name} {getattr(verdict, name)}" for name in counts if getattr(verdict, name)]
    return [*bad, *verdict.wrong]


def _session(*, slow: bool = False) -> aiohttp.ClientSession:
    """Kept connections, as a client library holds them; slow clients take little at a time."""
    options: dict[str, Any] = {"read_bufsize": SIP} if slow else {}
    # Not reused when the server is about to close it: that race is no fault of the API's.
    connector = aiohttp.TCPConnector(
        limit=0, keepalive_timeout=2, socket_factory=_small if slow else None
    )
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, **options)


def _small(address: Any) -> socket.socket:
    made = socket.socket(family=address[0], type=address[1], proto=address[2])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    return made
