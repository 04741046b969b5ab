"""One slice: so many streams at once, read to their end; nothing is parsed while the clock runs."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from benchmarks.endtoend.plan import CHAT, SILENCE, body


@dataclass(frozen=True, slots=True)
class Door:
    """One way to the engine: its URL and its key."""

    way: str
    url: str
    key: str


@dataclass(slots=True)
class Slice:
    """One way's streams of one slice. `first`: seconds to each stream's first event."""

    way: str
    seconds: float = 0.0
    tokens: int = 0
    prompt_tokens: int = 0
    first: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def measure(session: aiohttp.ClientSession, door: Door, numbers: range, tokens: int) -> Slice:
    """All of `numbers` asked at once at one door, from the first byte sent to the last received."""
    made = Slice(door.way)
    bodies = [orjson.dumps(body(number, tokens)) for number in numbers]
    begin = time.perf_counter()
    raws = await asyncio.gather(*(_read(session, door, data, made) for data in bodies))
    made.seconds = time.perf_counter() - begin
    for raw in raws:
        try:
            usage = usage_of(raw)
        except ValueError as failure:
            made.errors.append(str(failure))
            continue
        if usage["completion_tokens"] != tokens:
            made.errors.append(f"{usage['completion_tokens']} tokens for {tokens}")
        made.tokens += usage["completion_tokens"]
        made.prompt_tokens += usage["prompt_tokens"]
    return made


async def _read(session: aiohttp.ClientSession, door: Door, data: bytes, made: Slice) -> bytes:
    headers = {"Authorization": f"Bearer {door.key}", "Content-Type": "application/json"}
    raw = bytearray()
    begin = time.perf_counter()
    try:
        async with session.post(door.url + CHAT, data=data, headers=headers) as response:
            async for chunk in response.content.iter_any():
                if not raw:
                    made.first.append(time.perf_counter() - begin)
                raw += chunk
    except (aiohttp.ClientError, TimeoutError, OSError) as failure:
        return f"{type(failure).__name__}: {failure}".encode()
    return bytes(raw)


def usage_of(raw: bytes) -> dict[str, Any]:
    """The usage a stream ends with. Raises ValueError if it is no whole, good answer."""
    events = raw.split(b"\n\n")
    if len(events) < 3 or events[-2:] != [b"data: [DONE]", b""]:
        raise ValueError(f"no [DONE]: {raw[-200:].decode(errors='replace')}")
    usage: dict[str, Any] | None = orjson.loads(events[-3].removeprefix(b"data: ")).get("usage")
    if not usage:
        raise ValueError("no usage in the last event")
    return usage


def session() -> aiohttp.ClientSession:
    """Kept connections for both ways alike."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
