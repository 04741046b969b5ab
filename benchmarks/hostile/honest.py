"""Honest clients: streams one after the other, how long their first token takes, and what fails."""

import asyncio
import time
from dataclasses import dataclass, field

import aiohttp

from benchmarks.hostile.plan import MODEL

SILENCE = 60.0  # seconds without a byte after which a stream has failed


@dataclass(slots=True)
class Crowd:
    """So many clients of one API, each with one stream at a time."""

    url: str
    key: str
    first_tokens: list[float] = field(default_factory=list)  # seconds, of the phase under way
    failures: list[str] = field(default_factory=list)
    stopping: bool = False

    async def run(self, streams: int) -> None:
        """Streams until `stopping`."""
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE)
        headers = {"Authorization": f"Bearer {self.key}"}
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            self.url, timeout=timeout, headers=headers, connector=connector
        ) as http:
            await asyncio.gather(*(self._client(http, number) for number in range(streams)))

    def next_phase(self) -> tuple[list[float], list[str]]:
        """First tokens and failures since the last call."""
        phase = self.first_tokens, self.failures
        self.first_tokens, self.failures = [], []
        return phase

    async def _client(self, http: aiohttp.ClientSession, number: int) -> None:
        count = 0
        while not self.stopping:
            count += 1
            try:
                await self._stream(http, f"질문 {number}-{count}: 한국의 수도는 어디인가요?")
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.1)

    async def _stream(self, http: aiohttp.ClientSession, question: str) -> None:
        messages = [{"role": "user", "content": question}]
        body = {"model": MODEL, "messages": messages, "stream": True, "max_tokens": 24}
        begin, is_first, is_done = time.monotonic(), True, False
        async with http.post("/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                raise ValueError(f"{answer.status}: {(await answer.text())[:200]}")
            async for line in answer.content:
                if b'"error"' in line:
                    raise ValueError(line.decode("utf-8", "replace")[:200])
                if is_first and b'"content":"' in line and b'"content":""' not in line:
                    self.first_tokens.append(time.monotonic() - begin)
                    is_first = False
                is_done = is_done or line.strip() == b"data: [DONE]"
        if not is_done:
            raise ValueError("the stream was cut off")
