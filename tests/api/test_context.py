"""A prompt that cannot fit by its bytes is refused before any engine has it."""

from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.clock import Clock

from kodolly.api.request import ApiRequest
from kodolly.api.routing.context import check_fits
from kodolly.api.routing.table import WorkerTable
from kodolly.errors import ContextOverflow
from kodolly.protocol.wire import Extension, Snapshot, WorkerRow, WorkerState
from kodolly.worker.model import describe

from .conftest import Stack

EMBEDDED = Path(__file__).parents[2] / "adapters/kodolly_adapters/embedded/kodolly-ko-8m"


def table_of(*contexts: tuple[int | None, int | None]) -> WorkerTable:
    """A worker for each pair of context length in tokens and bytes of the longest token."""
    rows = [
        WorkerRow(
            name=f"http://w{number}",
            model_names=["m"],
            speed=1,
            queue_length=0,
            state=WorkerState.READY,
            kodolly=Extension(context_length=context, token_bytes=token_bytes),
        )
        for number, (context, token_bytes) in enumerate(contexts)
    ]
    table = WorkerTable(Clock())
    table.apply(Snapshot(epoch="e", version=1, workers=rows))
    return table


def request(body: dict[str, Any], size: int = 10**6) -> ApiRequest:
    return ApiRequest("/p", {"model": "m", **body}, "id", chat="messages" in body, size=size)


LONG = "가" * 34  # 102 bytes
PARTS = [{"type": "text", "text": LONG}, {"type": "image_url", "image_url": {"url": "x" * 999}}]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": LONG}, "prompt"),
        ({"prompt": ["a", LONG]}, "prompt"),
        ({"messages": [{"content": LONG}]}, "messages"),
        (
            {"messages": [{"content": LONG[:17]}, {"content": None}, {"content": LONG[17:]}]},
            "messages",
        ),
        ({"messages": [{"content": PARTS}]}, "messages"),
    ],
)
def test_more_bytes_than_the_context_can_hold_are_refused(body: dict[str, Any], field: str) -> None:
    """With one more token of room it is left to the engine, which counts exactly."""
    table = table_of((10, 10))
    with pytest.raises(ContextOverflow) as refusal:
        check_fits(request(body), table)
    assert (refusal.value.param, refusal.value.code) == (field, "context_length_exceeded")
    table = table_of((11, 10))
    check_fits(request(body), table)


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [5] * 1000},
        {"prompt": ["가" * 30, "가" * 30]},
        {"prompt": "a", "messages_or_not": LONG},
        {"messages": [{"content": PARTS[1:]}]},
    ],
)
def test_what_is_no_text_of_one_prompt_does_not_count(body: dict[str, Any]) -> None:
    """Token ids, other prompts of the list, fields that engines do not read, and pictures."""
    table = table_of((10, 10))
    check_fits(request(body), table)


def test_a_small_request_is_not_looked_at() -> None:
    """Its text is for the engine to count, which is quick."""
    table = table_of((10, 10))
    check_fits(request({"prompt": LONG}, size=200), table)


def test_nothing_is_refused_that_another_worker_may_take() -> None:
    """One with a longer context, or of which it is not known."""
    for other in ((1000, 10), (None, None), (10, None)):
        table = table_of((10, 10), other)
        check_fits(request({"prompt": LONG}), table)


async def test_the_engine_never_has_what_cannot_fit(stack: Stack) -> None:
    """A client is told so by the API, streamed or not; what might fit goes to the engine."""
    engine = await stack.add(context_length=100, token_bytes=50)
    async with aiohttp.ClientSession(stack.url) as http:
        for stream in (False, True):
            body: dict[str, Any] = {"model": "demo", "prompt": "가" * 1700, "stream": stream}
            async with http.post("/v1/completions", json=body) as answer:
                error = (await answer.json())["error"]
                assert (answer.status, error["code"]) == (400, "context_length_exceeded")
        assert engine.tokens == 0
        body = {"model": "demo", "prompt": "가" * 1600, "max_tokens": 2}
        async with http.post("/v1/completions", json=body) as answer:
            assert answer.status == 200
    assert engine.tokens > 0


def test_a_worker_knows_how_much_text_a_token_stands_for(tmp_path: Path) -> None:
    """From the model's tokenizer.json; nothing without one."""
    known = describe(str(EMBEDDED), None, None).token_bytes
    assert known is not None
    assert 4 <= known <= 200
    (tmp_path / "config.json").write_text("{}")
    assert describe(str(tmp_path), None, None).token_bytes is None
