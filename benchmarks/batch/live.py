"""Live clients: each asks, reads its stream, pauses, asks again; how long first tokens take in each phase."""

import asyncio
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field

import aiohttp

from benchmarks.batch.plan import LIVE_TOKENS, MODEL, THINK

SILENCE = 60.0  # seconds without a byte after which a stream has failed


@dataclass(slots=True)
class Crowd:
    """Clients that use the API processes in turn. `phase` names what is going on now.

    `first_tokens` (seconds) are by the phase of a whole stream, `failures` by that in which one broke.
    """

    doors: list[str]
    phase: str = ""
    first_tokens: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    is_stopping: bool = False

    async def run(self, clients: int) -> None:
        """Until `is_stopping`; then every client finishes its answer."""
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
            await asyncio.gather(*(self._client(http, number) for number in range(clients)))

    async def _client(self, http: aiohttp.ClientSession, number: int) -> None:
        pauses = random.Random(number)
        turn = number
        while not self.is_stopping:
            await asyncio.sleep(pauses.expovariate(1 / THINK))
            turn += 1
            phase = self.phase
            try:
                first = await self._stream(http, self.doors[turn % len(self.doors)], turn)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                # Of the phase in which it broke: a kill breaks streams that began before it.
                self.failures[self.phase].append(f"{type(error).__name__}: {error}")
            else:
                if phase == self.phase:  # one that saw the phase change belongs to neither
                    self.first_tokens[phase].append(first)

    async def _stream(self, http: aiohttp.ClientSession, door: str, turn: int) -> float:
        """Seconds to the first text of one answer, which is read to its end."""
        messages = [{"role": "user", "content": f"질문 {turn}: 한국의 수도는 어디인가요?"}]
        body = {"model": MODEL, "messages": messages, "stream": True, "max_tokens": LIVE_TOKENS}
        begin, first, is_done = time.perf_counter(), None, False
        async with http.post(f"{door}/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                raise ValueError(f"{answer.status}: {(await answer.text())[:200]}")
            async for line in answer.content:
                if first is None and b'"content":"' in line and b'"content":""' not in line:
                    first = time.perf_counter() - begin
                is_done = is_done or line.strip() == b"data: [DONE]"
        if not is_done or first is None:
            raise ValueError("the stream was cut off")
        return first
