"""Aliases of models, defaults of their cards, and what /v1/models tells of both."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from support.processes import eventually
from support.scripted_engine import Script

from kodolly.protocol.wire import WorkerState

from .conftest import Stack

CHAT = [{"role": "user", "content": "안녕"}]


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.url, timeout=30) as client:
        yield client


async def ask(http: httpx.AsyncClient, model: str, **fields: Any) -> Any:
    answer = await http.post(
        "/v1/chat/completions", json={"model": model, "messages": CHAT} | fields
    )
    return answer.json()


async def cards(http: httpx.AsyncClient) -> dict[str, Any]:
    return {card["id"]: card for card in (await http.get("/v1/models")).json()["data"]}


async def test_an_alias_is_another_name_of_a_model(stack: Stack, http: httpx.AsyncClient) -> None:
    """It is listed, retrieved and served; the engine only ever hears its own name."""
    engine = await stack.add(Script(model="ko58", length=3), aliases={"gpt-ko": "ko58"})
    assert (await ask(http, "gpt-ko"))["model"] == "ko58"
    assert engine.requests[-1].body["model"] == "ko58"
    listed = await cards(http)
    assert set(listed) == {"gpt-ko", "ko58"}
    assert (listed["gpt-ko"]["root"], listed["ko58"]["root"]) == ("ko58", "ko58")
    assert listed["ko58"]["aliases"] == ["gpt-ko"]
    assert (await http.get("/v1/models/gpt-ko")).json() == listed["gpt-ko"]
    tokens = await http.post("/tokenize", json={"model": "gpt-ko", "prompt": "a"})
    assert tokens.json()["count"] == 1


async def test_an_alias_moves_to_the_worker_that_claims_it_last(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    """Without a restart of the old one; it moves back when the new one goes."""
    await stack.add(Script(model="old", length=3), aliases={"gpt-ko": "old"})
    new = await stack.add(Script(model="new", length=3), aliases={"gpt-ko": "new"})
    assert (await ask(http, "gpt-ko"))["model"] == "new"
    stack.state(new, WorkerState.LOST)
    await eventually(lambda: stack.table.aliases() == {"gpt-ko": "old"})
    assert (await ask(http, "gpt-ko"))["model"] == "old"


async def test_a_model_s_own_name_is_no_alias(stack: Stack, http: httpx.AsyncClient) -> None:
    """A worker cannot take another model's requests by claiming its name."""
    await stack.add(Script(model="ko58", length=3))
    await stack.add(Script(model="thief", length=3), aliases={"ko58": "thief"})
    assert (await ask(http, "ko58"))["model"] == "ko58"


async def test_an_alias_waits_for_its_model(stack: Stack, http: httpx.AsyncClient) -> None:
    """With no worker ready it is a 503 to be tried again, as for the model itself, and no 404."""
    engine = await stack.add(Script(model="ko58"), aliases={"gpt-ko": "ko58"})
    await stack.add(Script(model="other"))
    stack.state(engine, WorkerState.STALLED)
    await eventually(lambda: "ko58" not in stack.table.models())
    assert set(await cards(http)) == {"other"}
    answer = await http.post("/v1/completions", json={"model": "gpt-ko", "prompt": "a"})
    assert answer.status_code == 503


async def test_defaults_hold_where_the_client_says_nothing(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    """By the model's name and by its aliases, whole and streamed; the client's own word wins."""
    defaults = {
        "temperature": 0.3,
        "max_tokens": 5,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    engine = await stack.add(Script(), defaults=defaults, aliases={"other": "demo"})
    for model in ("demo", "other"):
        answer = await ask(http, model)
        assert answer["usage"]["completion_tokens"] == 5
        assert defaults.items() <= engine.requests[-1].body.items()
    await ask(http, "demo", temperature=1, max_completion_tokens=3)
    body = engine.requests[-1].body
    assert (body["temperature"], body["max_completion_tokens"]) == (1, 3)
    assert "max_tokens" not in body
    answer = await http.post("/v1/completions", json={"model": "demo", "prompt": "a"})
    assert "chat_template_kwargs" not in engine.requests[-1].body
    assert answer.json()["usage"]["completion_tokens"] == 5
    async with http.stream(
        "POST", "/v1/chat/completions", json={"model": "demo", "messages": CHAT, "stream": True}
    ) as stream:
        await stream.aread()
    assert engine.requests[-1].body["max_tokens"] == 5
    assert (await cards(http))["demo"]["defaults"] == defaults


async def test_a_card_tells_what_every_worker_can_do(stack: Stack, http: httpx.AsyncClient) -> None:
    """A request may go to any of them. Null if one does not say."""
    await stack.add(
        Script(), capabilities=["chat", "completions", "tools"], owner="lab", context_length=4096
    )
    await stack.add(Script(), capabilities=["chat", "completions", "structured_outputs"])
    card = (await cards(http))["demo"]
    assert card["capabilities"] == ["chat", "completions"]
    assert (card["owned_by"], card["max_model_len"], card["workers"]) == ("lab", 16384, 2)
    await stack.add(Script())
    assert (await cards(http))["demo"]["capabilities"] is None
