"""SIGKILL to an engine in the middle of a constrained answer: another one goes on."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from support.apps import serving

from kodolly.api.app import create_app
from kodolly.protocol.wire import Extension, Snapshot, WorkerRow, WorkerState
from kodolly.settings import ApiSettings

from .conftest import NAME, EngineProcess, Start, healths_until_ready

pytestmark = pytest.mark.stack

BEFORE = 6  # tokens of each answer that the client has when the engine is killed
TOKENS = 400
FIELDS = {"type": "array", "items": {"enum": ["가나다", "라마", "abc"]}, "minItems": 150}
CITY = {
    "type": "object",
    "properties": {"days": FIELDS},
    "required": ["days"],
    "additionalProperties": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
    },
    "two choices": {"structured_outputs": {"regex": "(가나다|[a-z]+ ){200}"}, "n": 2},
}


@asynccontextmanager
async def api(engines: list[EngineProcess]) -> AsyncIterator[tuple[openai.AsyncOpenAI, Any]]:
    """An API before some engines, and its table of them."""
    rows = [
        WorkerRow(
            name=engine.url,
            model_names=[NAME],
            speed=1,
            queue_length=0,
            state=WorkerState.READY,
            kodolly=Extension(
                engine_url=engine.url,
                engine="transformers",
                context_length=2048,
                forced_ids=True,
            ),
        )
        for engine in engines
    ]
    app = create_app(ApiSettings(controller="http://127.0.0.1:1"))
    app.state.table.apply(Snapshot(epoch="1", version=1, workers=rows))
    async with (
        serving(app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, timeout=120) as client,
    ):
        yield client, app.state.table


@dataclass
class Told:
    """What a client has heard."""

    texts: dict[int, str] = field(default_factory=dict)  # by choice
    ids: dict[int, list[int]] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    heard: asyncio.Event = field(default_factory=asyncio.Event)  # BEFORE tokens of an answer

    def take(self, chunk: Any) -> None:
        """One event."""
        self.names.add(chunk.id)
        for choice in chunk.choices:
            calls = choice.delta.tool_calls or ()
            pieces = [choice.delta.content, *(c.function and c.function.arguments for c in calls)]
            text = "".join(piece or "" for piece in pieces)
            self.texts[choice.index] = self.texts.get(choice.index, "") + text
            made = (choice.model_extra or {}).get("token_ids") or []
            self.ids.setdefault(choice.index, []).extend(made)
            self.reasons += [choice.finish_reason] if choice.finish_reason else []
        if max(map(len, self.ids.values()), default=0) >= BEFORE:
            self.heard.set()


async def test_nothing_is_lost(start: Start, llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sampled answers of each kind are whole: one id, and the text of all tokens together."""
    victim, other = (start(llama, "--max-num-seqs", "8") for _ in range(2))
    for engine in (victim, other):
        healths_until_ready(engine)

    async def ask(client: openai.AsyncOpenAI, fields: dict[str, Any], told: Told) -> None:
        known = {k: v for k, v in fields.items() if k != "structured_outputs"}
        more = {k: v for k, v in fields.items() if k not in known}
        stream = await client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": "안녕"}],
            max_tokens=TOKENS,
            temperature=1.0,
            stream=True,
            extra_body={"return_token_ids": True, **more},
            **known,
        )
        async for chunk in stream:
            told.take(chunk)

    async with api([victim, other]) as (client, table):
        table.suspect(next(w for w in table.all() if w.row.name == other.url))
        told = {kind: Told() for kind in KINDS}
        asking = [asyncio.create_task(ask(client, KINDS[kind], told[kind])) for kind in KINDS]
        all_heard: asyncio.Future[Any] = asyncio.gather(*(e.heard.wait() for e in told.values()))
        pending: list[asyncio.Future[Any]] = [all_heard, *asking]
        await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        if not all_heard.done():
            await asyncio.gather(*asking)  # raises why one of them has ended
        assert all_heard.done(), "an answer ended too early to be cut"
        os.kill(victim.process.pid, signal.SIGKILL)
        await asyncio.gather(*asking)
        assert caplog.text.count("broke off its answer") == len(KINDS)
        for kind, each in told.items():
            assert len(each.names) == 1, kind
            assert len(each.reasons) == KINDS[kind].get("n", 1), kind
            for index, text in each.texts.items():
                assert text, kind
                assert await detokenized(client, other, each.ids[index], text), kind


async def detokenized(
    client: openai.AsyncOpenAI, engine: EngineProcess, ids: list[int], text: str
) -> bool:
    """Whether token ids stand for a text, a call's name and brackets aside."""
    answer = await client.post(
        engine.url + "/detokenize", body={"model": NAME, "tokens": ids}, cast_to=dict[str, Any]
    )
    return text.strip() in str(answer["prompt"])
