"""A phone's day: a long stored answer outlives its client, its engines, its workers and its API processes."""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.postgres import Postgres, running_postgres
from support.script import Script, chat_prompt
from support.stored_day import MODEL, QUESTION, SCRIPT, TIMEOUT, Day, Phone, reference, stored_day

pytestmark = pytest.mark.stack

AWAY = 30.0  # seconds
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A server for this module."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def day(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    """The stack, on either database."""
    server = None if request.param == "sqlite" else request.getfixturevalue("postgres")
    with stored_day(tmp_path_factory.mktemp("day"), server) as day:
        yield day


async def test_every_reader_ends_with_the_same_text(day: Day) -> None:
    """The client leaves, others attach; engine, worker and both API processes are killed in turn."""
    async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as http:
        wanted, phone = await asyncio.gather(reference(day, http), _leave_early(day, http))
        others = [
            Phone(day, phone.response_id),
            Phone(day, phone.response_id, phone.last, phone.text),
        ]
        reading = [
            asyncio.create_task(other.follow(http, number)) for number, other in enumerate(others)
        ]
        for victim in ("engine1", "api1", "worker2", "api2", "engine2"):
            await asyncio.sleep(1.5)
            day.kill(victim)
            await asyncio.sleep(0.7)
            day.start(victim)
            assert not any(each.done() and each.exception() for each in reading)
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*reading)
            await phone.follow(http)
        texts = {each.text for each in (*others, phone)}
        assert texts == {wanted}
        ends = [each.end["response"]["output"][0]["content"][0]["text"] for each in others]
        assert ends == [wanted, wanted]
        assert len({each.last for each in (*others, phone)}) == 1


async def _leave_early(day: Day, http: httpx.AsyncClient, number: int = 0) -> Phone:
    phone = Phone(day)
    await phone.create(http, day.apis[number], 60)
    return phone


async def test_a_restart_loses_nothing(day: Day) -> None:
    """SIGTERM of the API process that makes an answer: another one finishes it."""
    async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as http:
        day.wait()
        wanted, phone = await asyncio.gather(reference(day, http), _leave_early(day, http))
        os.kill(day.processes["api1"].pid, signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT):
            await phone.follow(http, 1)
        assert phone.text == wanted
        await asyncio.to_thread(day.processes["api1"].stop)
        day.start("api1")


OBJECT = {"type": "object"}
LIMITED = {"max_output_tokens": 260, "temperature": 0}  # about 5 s, and repeated exactly
REPLAYED: dict[str, dict[str, Any]] = {
    "schema": {"text": {"format": {"type": "json_schema", "name": "story", "schema": OBJECT}}},
    "tool": {
        "tools": [{"type": "function", "name": "f", "parameters": OBJECT}],
        "tool_choice": "required",
    },
}


async def test_a_schema_and_a_tool_call_are_taken_over(day: Day) -> None:
    """What only a replay can go on with: their API process is killed, then an engine, then the next API process."""
    script = scripted()
    wanted = script.answer(260, prompt=script.encode(chat_prompt(CHAT))).text
    day.wait()
    async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as http:
        phones = {name: Phone(day) for name in REPLAYED}
        for name, phone in phones.items():
            await phone.create(http, day.apis[0], 30, **REPLAYED[name], **LIMITED)
        reading = [asyncio.create_task(phone.follow(http, 1)) for phone in phones.values()]
        for victim in ("api1", "engine1", "api2"):
            day.kill(victim)
            day.start(victim)
            await asyncio.sleep(2)
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*reading)
    assert {name: phone.text for name, phone in phones.items()} == dict.fromkeys(REPLAYED, wanted)
    (message,) = phones["schema"].end["response"]["output"]
    assert message["content"][0]["text"] == wanted
    (call,) = phones["tool"].end["response"]["output"]
    assert (call["name"], call["arguments"]) == ("f", wanted)


async def test_an_owner_that_was_stopped_is_fenced(day: Day) -> None:
    """SIGSTOP with readers at both processes: the other one goes on; after SIGCONT all have one text."""
    day.wait()
    async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as http:
        wanted = await reference(day, http)
        owners, others = Phone(day), Phone(day)
        creating = asyncio.create_task(owners.create(http, day.apis[0]))
        async with asyncio.timeout(TIMEOUT):
            while len(owners.text) < 60:
                await asyncio.sleep(0.05)
            others.response_id = owners.response_id
            following = asyncio.create_task(others.follow(http, 1))
            while not others.text:
                await asyncio.sleep(0.05)
            await day.stop("api1")
            seen = len(others.text)
            while len(others.text) < seen + 100:  # by its new owner
                await asyncio.sleep(0.05)
            assert not others.end
            has_silence = len(owners.text) < len(others.text)
            day.go_on("api1")
            await asyncio.gather(creating, following)
    assert has_silence, "the stopped process went on"
    assert (owners.text, others.text) == (wanted, wanted)
    assert (owners.end, owners.last) == (others.end, others.last)
    assert "taken for dead" in day.log("api1")


REQUESTS = 80  # of a batch, about 0.8 s each


async def test_a_batch_is_handed_on_twice(day: Day) -> None:
    """Both processes that run it are killed in turn: every request has one line, with the right text."""
    bodies = {
        f"r{number}": CHAT
        | {"messages": [{"role": "user", "content": f"질문 {number}"}], "max_tokens": 40}
        for number in range(REQUESTS)
    }
    bodies["unknown"] = CHAT | {"model": "unknown"}
    day.wait()
    async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as http:
        batch_id = await start_batch(http, day.apis[0], bodies)
        await answered(http, f"{day.apis[0]}/v1/batches/{batch_id}", 10)
        day.kill("api1")
        done = await answered(http, f"{day.apis[1]}/v1/batches/{batch_id}", 11)
        done = await answered(http, f"{day.apis[1]}/v1/batches/{batch_id}", done + 10)
        assert done < REQUESTS, "it was over before the second kill"
        day.start("api1")
        day.kill("api2")
        day.start("api2")
        day.wait()
        await answered(http, f"{day.apis[0]}/v1/batches/{batch_id}", REQUESTS)
        batch = await ended(http, f"{day.apis[0]}/v1/batches/{batch_id}")
        counts = {"total": REQUESTS + 1, "completed": REQUESTS, "failed": 1}
        assert (batch["status"], batch["request_counts"]) == ("completed", counts)
        lines = await lines_of(http, day.apis[0], batch["output_file_id"])
        (failed,) = await lines_of(http, day.apis[0], batch["error_file_id"])
    assert Counter(each["custom_id"] for each in lines) == dict.fromkeys(list(bodies)[:-1], 1)
    script = scripted()
    for each in lines:
        prompt = script.encode(chat_prompt(bodies[each["custom_id"]]))
        text = each["response"]["body"]["choices"][0]["message"]["content"]
        assert text == script.answer(40, prompt=prompt).text, each["custom_id"]
    assert failed["custom_id"] == "unknown"


def scripted() -> Script:
    """What the engines answer by."""
    script = Script(model=MODEL)
    for name, value in SCRIPT.items():
        setattr(script, name, value)
    return script


async def start_batch(http: httpx.AsyncClient, api: str, bodies: dict[str, Any]) -> str:
    """Uploads requests and starts a batch of them; its id."""
    path = "/v1/chat/completions"
    lines = [
        {"custom_id": name, "method": "POST", "url": path, "body": body}
        for name, body in bodies.items()
    ]
    data = "\n".join(json.dumps(line) for line in lines).encode()
    file = await http.post(
        f"{api}/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"}
    )
    fields = {"input_file_id": file.json()["id"], "endpoint": path, "completion_window": "24h"}
    batch = await http.post(f"{api}/v1/batches", json=fields)
    assert batch.status_code == 200, batch.text
    return str(batch.json()["id"])


async def answered(http: httpx.AsyncClient, url: str, least: int) -> int:
    """How many requests of a batch are answered, once it is at least so many."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            counts = (await http.get(url)).json()["request_counts"]
            if (done := int(counts["completed"])) >= least:
                return done
            await asyncio.sleep(0.1)


async def ended(http: httpx.AsyncClient, url: str) -> dict[str, Any]:
    """A batch once it is over."""
    async with asyncio.timeout(TIMEOUT):
        while (batch := (await http.get(url)).json())["status"] in ("in_progress", "finalizing"):
            await asyncio.sleep(0.1)
    return dict(batch)


async def lines_of(http: httpx.AsyncClient, api: str, file_id: str) -> list[dict[str, Any]]:
    """The lines of a file."""
    answer = await http.get(f"{api}/v1/files/{file_id}/content")
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_the_database_may_be_away(day: Day) -> None:
    """For half a minute: what runs goes on, new answers are refused clearly unless they are not stored."""
    if day.database is None:
        pytest.skip("a SQLite file does not go away")
    async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as http:
        api = day.apis[1]
        day.wait()
        wanted = await reference(day, http, api)
        reading = Phone(day)
        whole = asyncio.create_task(reading.create(http, api, 10**9))
        await asyncio.sleep(2)
        day.database.stop()
        away_since = time.monotonic()
        try:
            await asyncio.sleep(1)
            body = {"model": MODEL, "input": "안녕", "max_output_tokens": 4}
            refused = await http.post(f"{api}/v1/responses", json=body)
            assert refused.status_code == 503, refused.text
            assert refused.json()["error"]["code"] == "store_unavailable"
            served = await http.post(f"{api}/v1/responses", json=body | {"store": False})
            assert served.status_code == 200, served.text
            await asyncio.wait_for(whole, TIMEOUT)
            assert reading.text == wanted
            assert reading.end["response"]["store"] is False
            while time.monotonic() < away_since + AWAY:  # and nothing changes in all that time
                refused = await http.post(f"{api}/v1/responses", json=body)
                assert refused.status_code == 503, refused.text
                chat = await http.post(f"{api}/v1/chat/completions", json=CHAT | {"max_tokens": 4})
                assert chat.status_code == 200, chat.text
                await asyncio.sleep(1)
        finally:
            day.database.start()
        await eventually_stores(http, api, body)
        assert await final_status(http, f"{api}/v1/responses/{reading.response_id}") == "failed"


async def final_status(http: httpx.AsyncClient, url: str) -> str:
    """A stored response's status once it is said: its process says so at a beat, not at once."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            answer = await http.get(url)
            assert answer.status_code == 200, answer.text
            if (status := str(answer.json()["status"])) != "in_progress":
                return status
            await asyncio.sleep(0.2)


async def eventually_stores(http: httpx.AsyncClient, api: str, body: dict[str, Any]) -> None:
    """Waits until the API stores again."""
    async with asyncio.timeout(TIMEOUT):
        while (await http.post(f"{api}/v1/responses", json=body)).status_code != 200:
            await asyncio.sleep(0.5)
