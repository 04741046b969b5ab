"""KoDolly's own engine for embeddings, in this process, on a tiny random BERT."""

import base64
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.apps import serving
from support.tiny_encoder import LONGEST, SIZE, make_tiny_encoder

from kodolly.engines.client import EngineClient
from kodolly.engines.command import EngineOptions
from kodolly.engines.embedder.model import Encoder, Recipe
from kodolly.engines.embedder.server import Embedder, create_app
from kodolly.engines.start import engine_command
from kodolly.errors import EngineStartError
from kodolly.http.site_guard import SiteGuard

TEXTS = ["서울은 대한민국의 수도입니다.", "a", "김치찌개를 끓이려면"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("m") / "tiny")


@pytest.fixture(scope="module")
def encoder(directory: Path) -> Encoder:
    return Encoder(directory, Recipe.read(directory, None), dtype="float32", device="cpu")


@pytest.fixture
async def http(encoder: Encoder) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an engine that embeds two texts at a time."""
    embedder = Embedder(["tiny"], batch=2, max_waiting=4)
    embedder.encoder = encoder
    app = create_app(embedder, key="key", guard=SiteGuard())
    headers = {"Authorization": "Bearer key"}
    async with serving(app) as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        yield client


async def embed(http: httpx.AsyncClient, **fields: Any) -> Any:
    answer = await http.post("/v1/embeddings", json={"model": "tiny"} | fields)
    return answer.json()


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "lasttoken"])
def test_vectors_are_those_of_each_text_alone(tmp_path: Path, pooling: str) -> None:
    """In a batch as by transformers itself on one text, pooled as the directory says."""
    import torch

    made = make_tiny_encoder(tmp_path / "m", pooling=pooling, normalize=False)
    encoder = Encoder(made, Recipe.read(made, None), dtype="float32", device="cpu")
    rows = [encoder.tokens(text) for text in TEXTS]
    with torch.inference_mode():
        for ids, vector in zip(rows, encoder.vectors(rows), strict=True):
            states = encoder._network(input_ids=torch.tensor([ids])).last_hidden_state[0]
            pooled = {
                "mean_tokens": states.mean(0),
                "cls_token": states[0],
                "lasttoken": states[-1],
            }
            assert torch.allclose(pooled[pooling], torch.tensor(vector), atol=1e-5)


async def test_texts_ids_and_formats(http: httpx.AsyncClient, encoder: Encoder) -> None:
    """A list in its order, a text, token ids and base64 are the same vectors, of length one."""
    listed = await embed(http, input=TEXTS)
    vectors = [each["embedding"] for each in listed["data"]]
    assert [each["index"] for each in listed["data"]] == [0, 1, 2]
    assert all(sum(x * x for x in vector) == pytest.approx(1, abs=1e-5) for vector in vectors)
    rows = [encoder.tokens(text) for text in TEXTS]
    assert listed["usage"]["prompt_tokens"] == sum(map(len, rows))
    ids = await embed(http, input=rows[0])
    assert ids["data"][0]["embedding"] == pytest.approx(vectors[0], abs=1e-5)
    coded = (await embed(http, input=TEXTS[0], encoding_format="base64"))["data"][0]["embedding"]
    assert struct.unpack(f"<{SIZE}f", base64.b64decode(coded)) == pytest.approx(
        vectors[0], abs=1e-5
    )


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": "a " * LONGEST * 4}, "input", "context_length_exceeded"),
        ({"input": [10**6]}, "input", None),
        ({"input": "a", "dimensions": 8}, "dimensions", None),
        ({"input": "a", "truncate_prompt_tokens": 2}, "truncate_prompt_tokens", None),
        ({"input": "a", "model": "another"}, "model", "model_not_found"),
    ],
)
async def test_what_it_does_not_do_is_named(
    http: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str | None
) -> None:
    """A 4xx with the field."""
    error = (await embed(http, **fields))["error"]
    assert (error["param"], error["code"]) == (param, code)


async def test_tokens_and_back(http: httpx.AsyncClient) -> None:
    """/tokenize and /detokenize are each other's inverse."""
    body = {"model": "tiny", "prompt": TEXTS[0], "add_special_tokens": False}
    answer = (await http.post("/tokenize", json=body | {"return_token_strs": True})).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == LONGEST
    back = await http.post("/detokenize", json={"model": "tiny", "tokens": answer["tokens"]})
    assert back.json()["prompt"] == TEXTS[0]


async def test_an_agent_sees_that_it_makes_embeddings(http: httpx.AsyncClient) -> None:
    """The canary is an embedding where text is refused; a key is asked for."""
    engine = EngineClient(str(http.base_url), "key", http)
    await engine.canary("tiny")
    assert engine.pooling
    assert await engine.context_length("tiny") == LONGEST
    assert (await engine.sample(timeout=5)).steps is not None
    refused = await http.get("/v1/models", headers={"Authorization": "Bearer wrong"})
    assert refused.status_code == 401


def test_an_unknown_module_is_refused_by_name(tmp_path: Path) -> None:
    """A vector that is made in another way would be wrong without a word."""
    directory = make_tiny_encoder(tmp_path / "m")
    modules = json.loads((directory / "modules.json").read_text())
    modules.append({"idx": 3, "path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (directory / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EngineStartError, match="Dense is not known"):
        Recipe.read(directory, None)
    other = make_tiny_encoder(tmp_path / "o", pooling="max_tokens")
    with pytest.raises(EngineStartError, match="only one of cls, mean, lasttoken"):
        Recipe.read(other, None)


def test_the_worker_starts_it_for_a_pooling_model() -> None:
    """`--engine transformers` is this engine where the model makes embeddings."""
    options = EngineOptions("dir", "tiny", "127.0.0.1", 22002, pooling=True)
    assert engine_command("transformers", options).argv[1:3] == ("-m", "kodolly.engines.embedder")
