"""Files and batches as a client sees them, by OpenAI's own library's shapes."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import sqlalchemy as sa
from openai import AsyncOpenAI
from support.processes import eventually
from support.script import Script

from kodolly.api.batches import runner as batch_runner
from kodolly.settings import ApiSettings
from kodolly.store.batches import BatchLine
from kodolly.store.store import Store
from kodolly.store.tables import batches

CHAT = "/v1/chat/completions"


@pytest.fixture
def settings() -> ApiSettings:
    """Two clients, small bounds."""
    return ApiSettings(client_keys=("mine", "yours"), max_body=20_000, max_file=200_000)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A file."""
    return Store(f"sqlite:///{tmp_path / 'store.sqlite3'}")


def line(number: int, model: str = "demo", url: str = CHAT, **body: Any) -> dict[str, Any]:
    """One request of a batch."""
    if not body:
        body = {"messages": [{"role": "user", "content": f"질문 {number}"}], "max_tokens": 4}
    return {
        "custom_id": f"r{number}",
        "method": "POST",
        "url": url,
        "body": {"model": model, **body},
    }


class Client:
    """A client of the API with a key."""

    def __init__(self, url: str, key: str = "mine") -> None:
        self.http = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )

    async def upload(self, lines: list[Any], purpose: str = "batch") -> httpx.Response:
        """Upload requests, or texts as they are."""
        texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
        return await self.http.post(
            "/v1/files",
            files={"file": ("in.jsonl", "\n".join(texts).encode())},
            data={"purpose": purpose},
        )

    async def batch(self, lines: list[Any], endpoint: str = CHAT) -> dict[str, Any]:
        """Upload requests and start a batch of them."""
        file = (await self.upload(lines)).json()
        answer = await self.http.post(
            "/v1/batches",
            json={
                "input_file_id": file["id"],
                "endpoint": endpoint,
                "completion_window": "24h",
                "metadata": {"k": "v"},
            },
        )
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def ended(self, batch_id: str) -> dict[str, Any]:
        """The batch once it is over."""
        async with asyncio.timeout(60):
            while True:
                batch = (await self.http.get(f"/v1/batches/{batch_id}")).json()
                if batch["status"] in ("completed", "failed", "expired", "cancelled"):
                    return dict(batch)
                await asyncio.sleep(0.05)

    async def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        """A file's lines."""
        if file_id is None:
            return []
        answer = await self.http.get(f"/v1/files/{file_id}/content")
        assert answer.status_code == 200
        return [json.loads(each) for each in answer.text.splitlines()]


@pytest.fixture
async def client(stack: Any) -> Any:
    """One with a good key."""
    own = Client(stack.url)
    async with own.http:
        yield own


@pytest.fixture
async def engine(stack: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One worker; what it is asked comes without the key that `stack.add` does not send."""
    monkeypatch.setattr(type(stack), "is_followed", _is_followed)
    return await stack.add(Script())


async def _is_followed(stack: Any) -> bool:
    headers = {"Authorization": "Bearer mine"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.get(f"{stack.url}/v1/models") as answer,
    ):
        cards = (await answer.json())["data"]
    return bool(sum(card["workers"] for card in cards) == len(stack.controller.registry.ready()))


async def test_a_batch_answers_every_request_once(client: Client, engine: Any) -> None:
    """The output has one line a request; a request with a fault has its own in the error file."""
    model = engine.script.model
    good = [line(number, model) for number in range(12)]
    unknown = line(99, "no-such-model")
    batch = await client.batch([*good, unknown])
    assert (batch["object"], batch["metadata"]) == ("batch", {"k": "v"})
    batch = await client.ended(batch["id"])

    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 13, "completed": 12, "failed": 1}
    lines = await client.lines(batch["output_file_id"])
    assert [each["custom_id"] for each in lines] == [f"r{number}" for number in range(12)]
    for each in lines:
        assert (each["response"]["status_code"], each["error"]) == (200, None)
        assert each["response"]["body"]["object"] == "chat.completion"
        assert each["response"]["body"]["choices"][0]["message"]["content"]
    (failed,) = await client.lines(batch["error_file_id"])
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("r99", 404)
    assert failed["response"]["body"]["error"]["code"] == "model_not_found"
    assert batch["in_progress_at"] <= batch["completed_at"]


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/completions", {"prompt": "옛날 옛적에", "max_tokens": 4}, "text_completion"),
        ("/v1/responses", {"input": "안녕", "max_output_tokens": 4}, "response"),
    ],
)
async def test_other_endpoints(
    client: Client, engine: Any, endpoint: str, body: dict[str, Any], kind: str
) -> None:
    """Text completions, and responses, which are not stored beside."""
    batch = await client.batch([line(1, engine.script.model, endpoint, **body)], endpoint)
    batch = await client.ended(batch["id"])
    (answer,) = await client.lines(batch["output_file_id"])
    assert answer["response"]["body"]["object"] == kind
    if kind == "response":
        assert answer["response"]["body"]["store"] is False


async def test_a_batch_of_embeddings(
    client: Client, stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector a line; a line without a text fails the batch, a model that makes text only its line."""
    monkeypatch.setattr(type(stack), "is_followed", _is_followed)
    chats = await stack.add(Script(), capabilities=["chat", "completions"])
    await stack.add(
        Script(model="vectors", pooling=True), pooling=True, capabilities=["embeddings"]
    )
    url = "/v1/embeddings"
    lines = [line(n, "vectors", url, input=["서울"] * n) for n in range(1, 4)]
    batch = await client.ended(
        (await client.batch([*lines, line(4, "vectors", url, input=[])], url))["id"]
    )
    assert [(each["line"], each["param"]) for each in batch["errors"]["data"]] == [(4, "input")]

    text = line(9, chats.script.model, url, input="부산")
    batch = await client.ended((await client.batch([*lines, text], url))["id"])
    assert batch["request_counts"] == {"total": 4, "completed": 3, "failed": 1}
    answers = await client.lines(batch["output_file_id"])
    vectors = [[one["embedding"] for one in each["response"]["body"]["data"]] for each in answers]
    assert vectors == [[[6.0, 6.0]] * n for n in range(1, 4)]
    (failed,) = await client.lines(batch["error_file_id"])
    assert failed["response"]["body"]["error"]["param"] == "model"


BAD_LINES: tuple[tuple[Any, str], ...] = (
    ('{"custom_id"', "JSON"),
    ("[1]", "must be a JSON object"),
    (line(0) | {"custom_id": 5}, "custom_id must be a text"),
    (line(1), "'r1' occurs twice"),
    (line(0) | {"method": "GET"}, "method must be POST"),
    (line(0) | {"url": "/v1/responses"}, f"url must be the batch's endpoint, {CHAT}"),
    (line(0) | {"body": "x"}, "body must be a JSON object"),
    (line(0, messages=[], stream=True), "does not stream"),
    (line(0, messages="x"), "messages"),
    (line(0, messages=[{"role": "user", "content": "x" * 30_000}]), "more than 20000 bytes"),
)


async def test_bad_lines_fail_the_batch_before_anything_is_sent(
    client: Client, engine: Any
) -> None:
    """Each error names its line, and what is wrong there."""
    lines = [line(1, engine.script.model), *(bad for bad, _ in BAD_LINES)]
    batch = await client.ended((await client.batch(lines))["id"])
    assert batch["status"] == "failed"
    errors = batch["errors"]["data"]
    assert [error["line"] for error in errors] == list(range(2, len(BAD_LINES) + 2))
    for error, (_, message) in zip(errors, BAD_LINES, strict=True):
        assert message in error["message"]
    assert batch["output_file_id"] is None
    assert engine.requests == []


async def test_a_batch_that_cannot_be_made_says_why(client: Client, engine: Any) -> None:
    """Endpoint, window, file, metadata: each error names its field."""
    file = (await client.upload([line(1)])).json()["id"]
    good = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    for field, value in (
        ("endpoint", "/v1/audio/speech"),
        ("completion_window", "1h"),
        ("input_file_id", "file-none"),
        ("input_file_id", "file-\0"),
        ("metadata", {"k": 1}),
    ):
        answer = await client.http.post("/v1/batches", json=good | {field: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    empty = await client.ended((await client.batch(["", " "]))["id"])
    assert empty["errors"]["data"][0]["code"] == "empty_file"


async def test_files_have_bounds(client: Client, engine: Any) -> None:
    """Size, purpose, kind of body, number of files."""
    assert (await client.upload(["x" * 300_000])).status_code == 413
    answer = await client.upload([line(1)], purpose="assistants")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "purpose")
    assert (await client.http.post("/v1/files", json={})).status_code == 415
    two = [("file", ("a", b"x")), ("file", ("b", b"y"))]
    answer = await client.http.post("/v1/files", files=two, data={"purpose": "batch"})
    assert answer.status_code == 400
    answer = await client.http.post("/v1/files", files={"other": ("a", b"x")})
    assert answer.status_code == 400

    async def endless() -> Any:
        head = '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
        yield head.encode()
        for _ in range(40):
            yield b"x" * 10_000

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await client.http.post("/v1/files", content=endless(), headers=headers)
    assert answer.status_code == 413


async def test_files_are_their_owners(client: Client, engine: Any, stack: Any) -> None:
    """List, read and delete; another key sees none of it."""
    ids = [(await client.upload([line(number)])).json()["id"] for number in range(3)]
    page = (await client.http.get("/v1/files?limit=2")).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[:0:-1], True)
    page = (await client.http.get(f"/v1/files?after={page['last_id']}")).json()
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[:1], False)
    assert await client.lines(ids[0]) == [line(0)]
    batch = await client.ended((await client.batch([line(1, engine.script.model)]))["id"])

    async with Client(stack.url, "yours").http as other:
        for path in (f"files/{ids[0]}", f"files/{ids[0]}/content", f"batches/{batch['id']}"):
            assert (await other.get(f"/v1/{path}")).status_code == 404
        assert (await other.post(f"/v1/batches/{batch['id']}/cancel")).status_code == 404
        assert (await other.delete(f"/v1/files/{ids[0]}")).status_code == 404
        assert (await other.get("/v1/files")).json()["data"] == []
        assert (await other.get("/v1/batches")).json()["data"] == []
    async with Client(stack.url, "wrong").http as stranger:
        for path in ("files", f"files/{ids[0]}/content", "batches"):
            assert (await stranger.get(f"/v1/{path}")).status_code == 401

    assert (await client.http.delete(f"/v1/files/{ids[0]}")).json()["deleted"]
    assert (await client.http.get(f"/v1/files/{ids[0]}")).status_code == 404
    listed = (await client.http.get("/v1/batches")).json()["data"]
    assert [each["id"] for each in listed] == [batch["id"]]


async def test_openais_own_client_library(client: Client, engine: Any, stack: Any) -> None:
    """Upload, create, retrieve, list, read and delete through `openai`."""
    requests = json.dumps(line(1, engine.script.model)).encode()
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="mine") as library:
        file = await library.files.create(file=("in.jsonl", requests), purpose="batch")
        batch = await library.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
        )
        await client.ended(batch.id)
        batch = await library.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        assert (batch.status, batch.request_counts.completed) == ("completed", 1)
        assert batch.output_file_id is not None
        content = await library.files.content(batch.output_file_id)
        assert json.loads(content.text)["custom_id"] == "r1"
        assert [each.id async for each in library.batches.list(limit=1)] == [batch.id]
        assert {each.id async for each in library.files.list()} == {file.id, batch.output_file_id}
        assert (await library.files.delete(file.id)).deleted


async def test_a_cancelled_batch_keeps_what_is_answered(
    client: Client, stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more requests are sent; the answers there are can be read."""
    monkeypatch.setattr(type(stack), "is_followed", _is_followed)
    monkeypatch.setattr(batch_runner, "STATE_LOOK", 0.0)
    engine = await stack.add(Script(first_delay=0.05))
    lines = [line(number, engine.script.model) for number in range(60)]
    batch = await client.batch(lines)

    async def some_are_done() -> bool:
        now = (await client.http.get(f"/v1/batches/{batch['id']}")).json()
        return bool(now["request_counts"]["completed"] >= 2)

    await eventually(some_are_done)
    answer = (await client.http.post(f"/v1/batches/{batch['id']}/cancel")).json()
    assert answer["status"] == "cancelling"
    batch = await client.ended(batch["id"])
    done = batch["request_counts"]["completed"]
    assert (batch["status"], batch["request_counts"]["total"]) == ("cancelled", 60)
    assert 2 <= done < 60
    assert len(await client.lines(batch["output_file_id"])) == done
    assert len(engine.requests) < 60


async def test_a_batch_over_its_window_expires(
    client: Client, stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no answer by then is an error with OpenAI's code; what has one is kept."""
    monkeypatch.setattr("kodolly.api.batches.endpoints.WINDOWS", {"24h": 2.0})
    monkeypatch.setattr(type(stack), "is_followed", _is_followed)
    engine = await stack.add(Script(first_delay=0.3))
    batch = await client.batch([line(number, engine.script.model) for number in range(50)])
    batch = await client.ended(batch["id"])
    assert batch["status"] == "expired"
    expired = await client.lines(batch["error_file_id"])
    assert {each["error"]["code"] for each in expired} == {"batch_expired"}
    assert len(expired) + len(await client.lines(batch["output_file_id"])) == 50


async def test_a_batch_yields_to_live_requests(
    client: Client, stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a few places of a worker, and none while live requests fill them."""
    monkeypatch.setattr(type(stack), "is_followed", _is_followed)
    engine = await stack.add(Script(first_delay=0.02))
    model = engine.script.model
    batch = await client.batch([line(number, model) for number in range(30)])
    most = 0

    async def is_over() -> bool:
        nonlocal most
        most = max(most, engine.running)
        now = (await client.http.get(f"/v1/batches/{batch['id']}")).json()
        return bool(now["status"] == "completed")

    await eventually(is_over, 60)
    assert 1 <= most <= batch_runner.WORKER_SHARE
    runner = stack.runner
    tickets = [runner.admission.ticket(model) for _ in range(batch_runner.WORKER_SHARE)]
    for ticket in tickets:
        await ticket.enter()
    batch = await client.batch([line(1, model)])
    before = len(engine.requests)
    await asyncio.sleep(1)
    assert len(engine.requests) == before
    (worker,) = stack.table.all()
    worker.foreign = batch_runner.WORKER_SHARE  # what another API process has sent there
    for ticket in tickets:
        ticket.leave()
    await asyncio.sleep(1)
    assert len(engine.requests) == before
    worker.foreign = 0
    assert (await client.ended(batch["id"]))["status"] == "completed"


@pytest.mark.parametrize("settings", [ApiSettings(client_keys=("mine",), worker_limit=4)])
async def test_a_batch_leaves_half_of_the_places_free(
    client: Client, stack: Any, settings: ApiSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With four places a worker, two of its requests run at a time."""
    monkeypatch.setattr(type(stack), "is_followed", _is_followed)
    engine = await stack.add(Script(first_delay=0.05))
    batch = await client.batch([line(number, engine.script.model) for number in range(12)])
    most = 0

    async def is_over() -> bool:
        nonlocal most
        most = max(most, engine.running)
        return bool(
            (await client.http.get(f"/v1/batches/{batch['id']}")).json()["status"] == "completed"
        )

    await eventually(is_over, 60)
    assert most == 2


async def test_another_process_goes_on(
    client: Client, stack: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch whose process has died is claimed; what is answered already is not asked again."""
    monkeypatch.setattr(type(stack), "is_followed", _is_followed)
    engine = await stack.add(Script())
    model = engine.script.model
    batch = await client.batch([line(number, model) for number in range(6)])
    batch = await client.ended(batch["id"])
    # The same again, left by a process that is gone: three of its lines are done.
    other = Store(str(store.database.url))
    await other.open()
    stored = await other.batches.get(batch["id"], None)
    assert stored is not None
    left = replace(stored, id="batch_left", status="validating", counts={}, times={})
    left.output_file_id = None
    left.created_at, left.deadline = time.time(), time.time() + 100
    await other.batches.create(left)
    lines = [BatchLine(n + 1, f"r{n}", line(n, model)["body"]) for n in range(6)]
    assert await other.batches.begin("batch_left", lines)
    for number in range(1, 4):
        done = json.dumps({"custom_id": f"r{number - 1}", "old": True})
        assert await other.batches.finish_line("batch_left", number, done, is_error=False)
    asked = len(engine.requests)
    await other.close()

    after = await client.ended("batch_left")
    assert after["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
    answers = await client.lines(after["output_file_id"])
    assert [each["custom_id"] for each in answers] == [f"r{n}" for n in range(6)]
    assert [bool(each.get("old")) for each in answers] == [True] * 3 + [False] * 3
    assert len(engine.requests) - asked == 3


async def test_a_batch_that_was_lost_and_claimed_again_is_finished(
    client: Client, stack: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the claim comes while requests from before are still under way; no line is doubled."""
    monkeypatch.setattr(type(stack), "is_followed", _is_followed)
    monkeypatch.setattr(batch_runner, "STATE_LOOK", 0.0)
    engine = await stack.add(Script(first_delay=1.5))
    batch = await client.batch([line(number, engine.script.model) for number in range(6)])
    await eventually(lambda: len(engine.requests) == batch_runner.WORKER_SHARE)

    async def set_runner(process_id: str) -> None:
        async with store.database.write() as connection:
            own = batches.c.id == batch["id"]
            await connection.execute(sa.update(batches).where(own).values(run_by=process_id))

    await set_runner("another process")
    await asyncio.sleep(2 * batch_runner.LOOK)  # it has looked, and waits for what it has sent
    await set_runner(store.leases.process_id)
    assert store.leases.on_batch_takeover is not None
    store.leases.on_batch_takeover([batch["id"]])
    batch = await client.ended(batch["id"])
    assert batch["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
    lines = await client.lines(batch["output_file_id"])
    assert [each["custom_id"] for each in lines] == [f"r{number}" for number in range(6)]
