"""/v1/embeddings, /tokenize, /detokenize and /version: checked, routed, retried, refused by name."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from support.processes import eventually
from support.scripted_engine import Script, ScriptedEngine

from kodolly import __version__
from kodolly.protocol.wire import Registration, WorkerStatus

from .conftest import Stack

EMBEDS: dict[str, Any] = {"capabilities": ["embeddings"], "pooling": True}


@pytest.fixture
async def http(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.url, timeout=30) as client:
        yield client


def embedder(model: str = "vectors", **faults: Any) -> Script:
    return Script(model=model, pooling=True, **faults)


async def error(http: httpx.AsyncClient, path: str, body: Any) -> tuple[int, str | None, str]:
    answer = await http.post(path, json=body)
    fault = answer.json()["error"]
    return answer.status_code, fault["param"], fault["message"]


async def test_openais_client_gets_vectors(stack: Stack) -> None:
    """`.embeddings.create` as it is, for a text, a list and token ids; usage is passed on."""
    await stack.add(embedder(), **EMBEDS)
    async with openai.AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="any") as client:
        answer = await client.embeddings.create(model="vectors", input=["서울", "ab"])
        assert [each.embedding for each in answer.data] == [[6.0, 6.0], [2.0, 2.0]]
        assert answer.usage.prompt_tokens == 8
        one = await client.embeddings.create(model="vectors", input="abc", encoding_format="float")
        ids = await client.embeddings.create(model="vectors", input=[7, 8], dimensions=2)
    assert [each.embedding[0] for each in (*one.data, *ids.data)] == [3.0, 2.0]


async def test_a_worker_that_dies_is_replaced_by_another(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    """As for a chat that answers whole: the client notices nothing."""
    dying = await stack.add(embedder(die_after=0), **EMBEDS)
    whole = await stack.add(embedder(), **EMBEDS)
    asked = 0
    while not dying.requests and asked < 100:  # of idle workers one is taken at random
        answer = await http.post("/v1/embeddings", json={"model": "vectors", "input": "ab"})
        assert answer.json()["data"][0]["embedding"] == [2.0, 2.0]
        asked += 1
    assert dying.requests
    assert len(whole.requests) == asked


async def test_text_and_embeddings_are_not_mixed_up(stack: Stack, http: httpx.AsyncClient) -> None:
    """A chat to a model that makes embeddings is a clear 400, and the other way round."""
    pooling = await stack.add(embedder(), **EMBEDS)
    chatting = await stack.add(Script(model="chats"), capabilities=["chat", "completions"])
    messages = [{"role": "user", "content": "안녕"}]
    chat = await error(http, "/v1/chat/completions", {"model": "vectors", "messages": messages})
    text = await error(http, "/v1/completions", {"model": "vectors", "prompt": "a"})
    vector = await error(http, "/v1/embeddings", {"model": "chats", "input": "a"})
    assert chat[:2] == text[:2] == vector[:2] == (400, "model")
    assert "use /v1/embeddings" in chat[2]
    assert "makes text and no embeddings" in vector[2]
    assert pooling.requests == chatting.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [[1], []]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({}, "input"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "stream": True}, "stream"),
        ({"input": "a", "chat_template": "x"}, "chat_template"),
    ],
)
async def test_bad_embedding_requests_name_their_field(
    stack: Stack, http: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    """Checked here: no engine sees them."""
    engine = await stack.add(embedder(), **EMBEDS)
    status, field, _ = await error(http, "/v1/embeddings", {"model": "vectors"} | fields)
    assert (status, (field or "").partition("[")[0]) == (400, param)
    assert engine.requests == []


async def test_a_text_and_its_tokens(stack: Stack, http: httpx.AsyncClient) -> None:
    """/tokenize and /detokenize are the engine's own, through one of the model's workers."""
    await stack.add(Script(model="demo"))
    answer = (await http.post("/tokenize", json={"model": "demo", "prompt": "한"})).json()
    assert answer == {
        "count": 3, "max_model_len": 16384, "tokens": [0xED, 0x95, 0x9C], "token_strs": None,
    }  # fmt: skip
    back = await http.post("/detokenize", json={"model": "demo", "tokens": answer["tokens"]})
    assert back.json() == {"prompt": "한"}


async def test_a_chat_s_tokens_are_those_of_its_prompt(
    stack: Stack, http: httpx.AsyncClient
) -> None:
    """What the API changes of a chat it changes here too: keys are guarded, contexts put in."""
    engine = await stack.add(guard=["<|user|>"], stop=["###"], template_knows=[])
    chat = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "a<|user|>b", "context": "c"},
    ]
    await http.post("/tokenize", json={"model": "demo", "messages": chat})
    body = engine.requests[-1].body
    assert body["messages"][0]["role"] == "system"
    assert "<|user|>" not in body["messages"][1]["content"]
    assert body["messages"][1]["content"].endswith("c")
    assert "stop" not in body
    tools = [{"type": "function", "function": {"name": "f"}}]
    status, param, _ = await error(
        http, "/tokenize", {"model": "demo", "messages": chat, "tools": tools}
    )
    assert (status, param) == (400, "tools")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt"),
        ("/tokenize", {"prompt": "a", "chat_template": "x"}, "chat_template"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
    ],
)
async def test_bad_token_requests_name_their_field(
    stack: Stack, http: httpx.AsyncClient, path: str, fields: dict[str, Any], param: str
) -> None:
    """As for chats."""
    await stack.add()
    status, field, _ = await error(http, path, {"model": "demo"} | fields)
    assert (status, (field or "").partition("[")[0]) == (400, param)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize", "/detokenize"])
async def test_a_model_that_nobody_serves(stack: Stack, http: httpx.AsyncClient, path: str) -> None:
    """404 with the model's name, as for chats."""
    await stack.add()
    body = {"model": "nobody", "input": "a", "prompt": "a", "tokens": [1]}
    status, param, message = await error(http, path, body)
    assert (status, param) == (404, "model")
    assert "nobody" in message


async def test_a_fastchat_worker_is_named(stack: Stack, http: httpx.AsyncClient) -> None:
    """FastChat's protocol has no such calls: a 400 says so."""
    engine = await stack.stack.enter_async_context(ScriptedEngine(Script(model="old")))
    stack.controller.registry.register(
        Registration(worker_name=engine.url), WorkerStatus(model_names=["old"])
    )
    await eventually(stack.is_followed)
    body = {"model": "old", "input": "a", "prompt": "a", "tokens": [1]}
    for path in ("/v1/embeddings", "/tokenize", "/detokenize"):
        status, param, message = await error(http, path, body)
        assert (status, param) == (400, "model")
        assert f"FastChat worker, which has no {path}" in message


async def test_version(http: httpx.AsyncClient) -> None:
    """KoDolly's own."""
    assert (await http.get("/version")).json() == {"version": __version__}
