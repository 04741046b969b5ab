"""One batch by way of the API: uploaded, watched, and its output judged line by line."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from support.script import Script, chat_prompt

from benchmarks.batch.plan import BATCH_TOKENS, MODEL, SCRIPT

PATH = "/v1/chat/completions"
LOOK = 0.5  # seconds between two looks at how far it is
LONGEST = 1800.0  # seconds for the whole batch


@dataclass(slots=True)
class Job:
    """A batch of `size` requests; `doors` are the API processes, of which one may be away."""

    http: aiohttp.ClientSession
    doors: Sequence[str]
    size: int
    id: str = ""
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)  # by custom_id

    async def start(self) -> None:
        """Upload the requests and start the batch at the first door."""
        for number in range(self.size):
            messages = [{"role": "user", "content": f"{number}번째 문서를 요약해 주세요."}]
            self.bodies[f"r{number}"] = {
                "model": MODEL,
                "messages": messages,
                "max_tokens": BATCH_TOKENS,
            }
        lines = [
            {"custom_id": name, "method": "POST", "url": PATH, "body": body}
            for name, body in self.bodies.items()
        ]
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", "\n".join(map(json.dumps, lines)).encode(), filename="in.jsonl")
        async with self.http.post(f"{self.doors[0]}/v1/files", data=form) as answer:
            file = await answer.json()
        fields = {"input_file_id": file["id"], "endpoint": PATH, "completion_window": "24h"}
        async with self.http.post(f"{self.doors[0]}/v1/batches", json=fields) as answer:
            self.id = (await answer.json())["id"]

    async def state(self) -> dict[str, Any]:
        """The batch as it is now, from whichever process answers."""
        while True:
            for door in self.doors:
                try:
                    async with self.http.get(f"{door}/v1/batches/{self.id}") as answer:
                        if answer.status == 200:
                            return dict(await answer.json())
                except aiohttp.ClientError:
                    pass
            await asyncio.sleep(LOOK)

    async def answered(self, share: float) -> int:
        """Waits until this share of its requests has an answer; how many have. Raises TimeoutError."""
        async with asyncio.timeout(LONGEST):
            while True:
                done = int((await self.state())["request_counts"]["completed"])
                if done >= share * self.size:
                    return done
                await asyncio.sleep(LOOK)

    async def ended(self) -> dict[str, Any]:
        """The batch once it is over. Raises TimeoutError."""
        async with asyncio.timeout(LONGEST):
            while (state := await self.state())["status"] in ("in_progress", "finalizing"):
                await asyncio.sleep(LOOK)
        return state

    async def lines(self, state: dict[str, Any]) -> list[dict[str, Any]]:
        """All lines of its output and of its error file."""
        lines: list[dict[str, Any]] = []
        for name in ("output_file_id", "error_file_id"):
            if state[name]:
                url = f"{self.doors[0]}/v1/files/{state[name]}/content"
                async with self.http.get(url) as answer:
                    lines += [json.loads(line) for line in (await answer.text()).splitlines()]
        return lines


@dataclass(slots=True)
class Verdict:
    """Requests without a line, with more than one, with another answer than the script's."""

    lost: int
    doubled: int
    wrong: int
    sent_again: int = 0  # requests that an engine saw more than once


def judge(bodies: dict[str, dict[str, Any]], lines: Sequence[dict[str, Any]]) -> Verdict:
    """Compares a batch's lines with what they must be."""
    script = Script(model=MODEL)
    for name, value in SCRIPT.items():
        setattr(script, name, value)
    times = Counter(line["custom_id"] for line in lines)
    wrong = 0
    for line in lines:
        body = bodies.get(line["custom_id"])
        wrong += body is None or _text(line) != _wanted(script, body)
    return Verdict(
        lost=sum(not times[name] for name in bodies),
        doubled=sum(count > 1 for count in times.values()),
        wrong=wrong,
    )


def _text(line: dict[str, Any]) -> str | None:
    try:
        return str(line["response"]["body"]["choices"][0]["message"]["content"])
    except (KeyError, TypeError, IndexError):
        return None


def _wanted(script: Script, body: dict[str, Any]) -> str:
    return script.answer(body["max_tokens"], prompt=script.encode(chat_prompt(body))).text


def sent_again(journals: Sequence[Path], batch_id: str) -> int:
    """How many requests of a batch reached an engine more than once."""
    lines = [json.loads(line) for path in journals for line in path.read_text().splitlines()]
    times = Counter(line["id"] for line in lines if (line["id"] or "").startswith(batch_id))
    return sum(count > 1 for count in times.values())
