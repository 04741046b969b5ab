"""The OpenAPI document: what it says is so, and nothing in it leads to another host."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from support.apps import serving
from support.scripted_engine import Script

from kodolly.api.app import ApiApp, create_app
from kodolly.api.messages.document import AnsweredMessage, MessageError
from kodolly.api.reference import page
from kodolly.protocol.openai_results import (
    ChatCompletion,
    ErrorEnvelope,
    ModelCard,
    ModelList,
    TextCompletion,
)
from kodolly.settings import ApiSettings

from .conftest import Stack

MODEL = "kodolly-ko-8m"  # of the examples
SOURCE = Path(page.__file__).parent / "rapidoc" / "SOURCE.md"


async def ask(stack: Stack, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, stack.url + path, **options) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


@pytest.fixture
async def document(stack: Stack) -> Any:
    status, answer = await ask(stack, "GET", "/openapi.json")
    assert status == 200
    return answer


def references(part: Any) -> Iterator[str]:
    """Every `$ref` of the document."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for item in part:
            yield from references(item)


async def test_it_names_every_path_and_all_it_refers_to_is_in_it(document: Any) -> None:
    """No path is missing, no reference dangles, and nobody is promised FastAPI's 422."""
    assert {path: list(methods) for path, methods in document["paths"].items()} == {
        "/v1/chat/completions": ["post"],
        "/v1/completions": ["post"],
        "/v1/responses": ["post"],
        "/v1/responses/{response_id}": ["get", "delete"],
        "/v1/responses/{response_id}/cancel": ["post"],
        "/v1/responses/{response_id}/input_items": ["get"],
        "/v1/responses/input_tokens": ["post"],
        "/v1/conversations": ["post"],
        "/v1/conversations/{conversation_id}": ["get", "post", "delete"],
        "/v1/conversations/{conversation_id}/items": ["post", "get"],
        "/v1/conversations/{conversation_id}/items/{item_id}": ["get", "delete"],
        "/v1/embeddings": ["post"],
        "/tokenize": ["post"],
        "/detokenize": ["post"],
        "/version": ["get"],
        "/v1/messages": ["post"],
        "/v1/messages/count_tokens": ["post"],
        "/v1/models": ["get"],
        "/v1/models/{model}": ["get"],
        "/health": ["get"],
        "/ready": ["get"],
    }
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= schemas
    assert "422" not in str(document)
    assert not re.search("https?://", str(document))


async def test_a_key_is_said_to_be_needed_only_where_it_is(document: Any) -> None:
    """Generated clients take a scheme for an obligation."""
    for path in ("/v1/models", "/v1/messages"):
        for operation in document["paths"][path].values():
            assert {} in operation["security"]


async def test_its_examples_are_answered_as_it_says(stack: Stack, document: Any) -> None:
    """Whole answers, lists and errors have the shapes that the document gives them."""
    await stack.add(Script(model=MODEL))
    for path, shape in (
        ("/v1/chat/completions", ChatCompletion),
        ("/v1/completions", TextCompletion),
        ("/v1/messages", AnsweredMessage),
    ):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for example in body["examples"].values():
            status, answer = await ask(stack, "POST", path, json=example["value"])
            assert status == 200
            shape.model_validate(answer)
            status, answer = await ask(
                stack, "POST", path, json=example["value"] | {"max_tokens": -1}
            )
            assert status == 400
            error = MessageError if shape is AnsweredMessage else ErrorEnvelope
            error.model_validate(answer)
    ModelList.model_validate((await ask(stack, "GET", "/v1/models"))[1])
    ModelCard.model_validate((await ask(stack, "GET", f"/v1/models/{MODEL}"))[1])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/redoc", 404),
        ("GET", "/docs/oauth2-redirect", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/completions/", 404),
        ("GET", "/v1/models/none/such", 404),
    ],
)
async def test_every_refusal_is_in_openai_s_envelope(
    stack: Stack, method: str, path: str, status: int
) -> None:
    """Those of the framework too; its own pages, which load scripts from elsewhere, are not there."""
    given, answer = await ask(stack, method, path, allow_redirects=False)
    assert given == status
    assert ErrorEnvelope.model_validate(answer).error.type == "invalid_request_error"


async def test_head_is_answered_as_get_is(stack: Stack) -> None:
    """Balancers ask so."""
    await stack.add()
    async with aiohttp.ClientSession() as http:
        for path in ("/health", "/ready", "/v1/models", "/v1/models/demo", "/openapi.json"):
            async with http.head(stack.url + path) as head, http.get(stack.url + path) as get:
                assert (head.status, head.content_type) == (200, get.content_type)


async def test_a_value_of_the_wrong_kind_is_400_and_names_its_field() -> None:
    """FastAPI's own checks answer as ours do, not with 422 and a body that no client reads."""

    async def endpoint(number: int) -> int:
        return number

    app = ApiApp()
    app.add_get("/numbers/{number}", endpoint)
    async with serving(app) as url, aiohttp.ClientSession() as http:
        async with http.get(f"{url}/numbers/x") as answer:
            error = ErrorEnvelope.model_validate(await answer.json()).error
        assert (answer.status, error.param) == (400, "number")
        async with http.get(f"{url}/numbers/7") as answer:
            assert (answer.status, await answer.json()) == (200, 7)


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/chat/completions", 404, "did you mean POST /v1/chat/completions?"),
        ("POST", "/v1/chat/completions/", 404, "did you mean POST /v1/chat/completions?"),
        ("POST", "/v1/v1/chat/completions", 404, "did you mean POST /v1/chat/completions?"),
        ("POST", "//v1/completions", 404, "did you mean POST /v1/completions?"),
        ("GET", "/api/v1/models", 404, "did you mean GET /v1/models?"),
        ("GET", "/V1/Models", 404, "did you mean GET /v1/models?"),
        ("POST", "/v1/chat/completion", 404, "did you mean POST /v1/chat/completions?"),
        ("GET", "/v1/nothing/like/it", 404, "/docs shows what there is"),
        ("GET", "/" + "x" * 10_000, 404, "/docs shows what there is"),
        ("GET", "/v1/chat/completions", 405, "use POST"),
        ("DELETE", "/v1/models", 405, "use GET"),
    ],
)
async def test_a_wrong_path_or_method_says_what_is_right(
    stack: Stack, method: str, path: str, status: int, words: str
) -> None:
    """A base URL without /v1, or with two, is the commonest first mistake."""
    given, answer = await ask(stack, method, path)
    assert (given, words in answer["error"]["message"]) == (status, True), answer


async def test_the_page_of_the_document_is_kodolly_s_own() -> None:
    """Its script is the published file, nothing comes from another host, and it needs a key."""
    app = create_app(ApiSettings(client_keys=("secret-of-the-client",)))
    async with serving(app) as url, aiohttp.ClientSession() as http:
        async with http.get(f"{url}/docs") as refused:
            assert refused.status == 401
            assert refused.headers["WWW-Authenticate"].startswith("Basic")
        key = {"Authorization": aiohttp.encode_basic_auth("any", "secret-of-the-client")}
        async with http.get(f"{url}/docs", headers=key) as answer:
            text = await answer.text()
            assert answer.status == 200
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "//" not in text
        async with http.get(f"{url}/openapi.json", headers=key) as document:
            operation = (await document.json())["paths"]["/v1/models"]["get"]
        assert operation["security"] == [{"HTTPBearer": []}]
        for encoding in ("gzip", "identity"):
            headers = {"Accept-Encoding": encoding}
            async with http.get(f"{url}/docs/rapidoc.js", headers=headers) as script:
                content = await script.read()
            assert hashlib.sha256(content).hexdigest() in SOURCE.read_text()
