"""Hundreds of clients in a closed loop: each asks, reads to the end, is judged, asks again."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp
import httpx2
import openai

from benchmarks.chaos.asks import Ask
from benchmarks.chaos.checks import Answer, Verdict, judge, read_stream, read_whole, take
from benchmarks.chaos.plan import WHOLE

ROUNDS = 25  # times all doors are tried before there is none
PAUSE = 0.2


@dataclass(slots=True)
class Outcome:
    """One request from its start to its end, in wall-clock seconds."""

    number: str
    ask: Ask
    door: int
    start: float
    first: float | None
    end: float
    gap: float  # the longest silence
    gap_at: float  # when that began
    answer: Answer
    verdict: Verdict

    @property
    def failed(self) -> bool:
        """Whether the client heard an error or a broken answer."""
        return self.answer.error is not None


@dataclass(slots=True)
class Listener:
    """When bytes came: the first, the longest silence."""

    last: float
    first: float | None = None
    gap: float = 0.0
    gap_at: float = 0.0

    def hear(self) -> float:
        """Something came now."""
        now = time.time()
        if self.first is None:
            self.first = now
        if now - self.last > self.gap:
            self.gap, self.gap_at = now - self.last, self.last
        self.last = now
        return now


class NoAnswer(Exception):
    """The connection failed before an answer began."""


@dataclass(slots=True)
class Crowd:
    """All clients. `doors` are the API processes, which they use in turn as a balancer would.

    A connection that is refused, or reset before an answer began, is tried at another door and
    counted; everything else that goes wrong is a failure.
    """

    doors: list[str]
    silence: float
    outcomes: list[Outcome] = field(default_factory=list)
    open: dict[str, tuple[int, float]] = field(default_factory=dict)  # id -> door, start
    arrived: Counter[int] = field(default_factory=Counter)  # second -> events
    moved: Counter[str] = field(default_factory=Counter)
    stopping: bool = False
    library: dict[str, openai.AsyncOpenAI] = field(default_factory=dict)

    async def run(self, asks: Iterator[Ask], streams: int) -> None:
        """Until `stopping`; then every client finishes its answer."""
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(*(self._client(slot, asks, session) for slot in range(streams)))
        for client in self.library.values():
            await client.close()

    async def _client(self, slot: int, asks: Iterator[Ask], session: aiohttp.ClientSession) -> None:
        await asyncio.sleep(slot * 0.02)
        turn = 0
        while not self.stopping:
            turn += 1
            await self.one(f"chaos-{slot}-{turn}", next(asks), slot + turn, session)

    async def one(
        self, number: str, ask: Ask, turn: int, session: aiohttp.ClientSession
    ) -> Outcome:
        """One request, asked, read and judged."""
        begin = time.time()
        heard = Listener(begin)
        door, answer = 0, Answer(error="no API process answers")
        for attempt in range(ROUNDS * len(self.doors)):
            door = (turn + attempt) % len(self.doors)
            self.open[number] = (door, begin)
            try:
                answer = await self._ask(self.doors[door], number, ask, heard, session)
                break
            except NoAnswer as failure:
                self.moved[str(failure)] += 1
                if attempt % len(self.doors) == len(self.doors) - 1:
                    await asyncio.sleep(PAUSE)
        del self.open[number]
        verdict = judge(ask, answer) if ask.expected else Verdict()
        outcome = Outcome(
            number, ask, door, begin, heard.first, time.time(), heard.gap, heard.gap_at,
            answer, verdict,
        )  # fmt: skip
        self.outcomes.append(outcome)
        return outcome

    async def _ask(
        self, door: str, number: str, ask: Ask, heard: Listener, session: aiohttp.ClientSession
    ) -> Answer:
        if ask.way == "openai":
            return await self._library(door, number, ask, heard)
        raw = bytearray()
        streamed = bool(ask.body.get("stream"))
        patience = self.silence if streamed else WHOLE
        try:
            async with session.post(
                door + ask.path,
                json=ask.body,
                headers={"X-Request-Id": number},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=patience),
            ) as response:
                if response.status != 200:
                    return Answer(error=f"status {response.status}")
                async for chunk in response.content.iter_any():
                    now = heard.hear()
                    self.arrived[int(now)] += chunk.count(b"\n\n")
                    raw += chunk
                if not streamed:
                    return read_whole(bytes(raw))
        except aiohttp.ClientConnectorError as failure:
            raise NoAnswer("connection refused") from failure
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as failure:
            if heard.first is None and not isinstance(failure, TimeoutError):
                raise NoAnswer("reset before an answer began") from failure
            silent = isinstance(failure, TimeoutError)
            answer = read_stream(bytes(raw)) if streamed else Answer()
            if answer.error in (None, "cut off"):
                answer.error = "silent for too long" if silent else "broken connection"
            return answer
        return read_stream(bytes(raw))

    async def _library(self, door: str, number: str, ask: Ask, heard: Listener) -> Answer:
        answer = Answer()
        if door not in self.library:  # one each: building one takes longer than an answer's start
            self.library[door] = openai.AsyncOpenAI(
                base_url=f"{door}/v1", api_key="any", max_retries=0, timeout=self.silence
            )
        chat = self.library[door].chat.completions
        try:
            stream = await chat.create(**ask.body, extra_headers={"X-Request-Id": number})
            async for chunk in stream:
                self.arrived[int(heard.hear())] += 1
                take(answer, chunk.model_dump(exclude_unset=True))
        except openai.APITimeoutError:
            answer.error = "silent for too long"
        except openai.APIStatusError as failure:
            answer.error = f"status {failure.status_code}"
        except openai.APIConnectionError as failure:
            if heard.first is None:
                raise NoAnswer("refused or reset (openai)") from failure
            answer.error = "broken connection"
        except openai.APIError as failure:
            answer.error = f"error event: {failure.code}"
        except (httpx2.HTTPError, OSError):  # the library lets its transport's errors through
            answer.error = "broken connection"
        if answer.error is None and not all(said.reasons for said in answer.choices.values()):
            answer.error = "cut off"  # the library takes an early end for the end
        return answer
