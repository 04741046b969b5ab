"""Comments on silent streams, and streams that end by a fault of our own."""

import asyncio
import logging
from typing import Any

import aiohttp
import openai
import pytest
from starlette.types import Message
from support.scripted_engine import Script

from kodolly.api.client_output import ClientOutput
from kodolly.api.pings import TICKS, Pings
from kodolly.api.relay.relay import Relay
from kodolly.settings import ApiSettings

from .conftest import Stack

PING = b": ping\n\n"
CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "안녕"}]}


class Client:
    """A client that takes what it is sent while it has room."""

    def __init__(self) -> None:
        self.got = b""
        self.has_room = True
        self.room = asyncio.Event()
        self.room.set()
        self.output = ClientOutput(self.send, "id", 60.0, self.chunk)

    async def send(self, message: Message) -> None:
        await self.room.wait()
        self.got += message.get("body", b"")

    def chunk(self, data: bytes) -> bool:
        if self.has_room:
            self.got += data
        return self.has_room


def look(pings: Pings, times: int) -> None:
    for _ in range(times):
        pings.look()


async def test_a_silent_stream_gets_a_comment_once_an_interval() -> None:
    """Also one whose answer has not begun; what is sent starts the count anew."""
    pings, client = Pings(15.0), Client()
    pings.add(client.output)
    look(pings, TICKS - 1)
    assert client.got == b""
    pings.look()
    assert client.got == PING
    look(pings, TICKS)
    assert client.got == PING * 2
    look(pings, TICKS - 1)
    client.output.push(b"data: x\n\n")
    look(pings, TICKS - 1)
    assert client.got == PING * 2 + b"data: x\n\n"
    pings.discard(client.output)
    look(pings, TICKS)
    assert client.got == PING * 2 + b"data: x\n\n"


async def test_a_slow_client_is_sent_no_comments() -> None:
    """They would pile up in front of what it waits for; the one that began the response stays first."""
    pings, client = Pings(15.0), Client()
    pings.add(client.output)
    client.room.clear()
    look(pings, TICKS)
    client.has_room = False
    look(pings, TICKS * 3)
    client.room.set()
    await asyncio.sleep(0.01)
    assert client.got == PING


async def test_one_stream_that_cannot_be_written_to_does_not_end_the_others() -> None:
    """It is left out from then on."""
    pings, broken, well = Pings(15.0), Client(), Client()
    for each in (broken, well):
        pings.add(each.output)
        each.output.has_started = True
    broken.output._chunk = None  # type: ignore[assignment]
    look(pings, TICKS * 2)
    assert well.got == PING * 2


async def test_zero_switches_comments_off() -> None:
    """The task ends at once."""
    await asyncio.wait_for(Pings(0).run(), 5)


class TestInterval:
    """A short interval before real engines."""

    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(ping_interval=0.1, worker_limit=1, queue_timeout=20)

    async def test_comments_come_while_a_prompt_is_read_and_while_a_request_waits(
        self, stack: Stack
    ) -> None:
        """The real client reads over them; what it is sent is whole."""
        script = Script(first_delay=0.5)
        await stack.add(script)
        url = f"{stack.url}/v1/chat/completions"

        async def raw() -> str:
            body = CHAT | {"stream": True}
            async with aiohttp.ClientSession() as http, http.post(url, json=body) as response:
                assert response.status == 200
                return await response.text()

        async def text() -> str:
            options: dict[str, Any] = {"base_url": f"{stack.url}/v1", "api_key": "x"}
            async with openai.AsyncOpenAI(**options, max_retries=0) as client:
                stream = await client.chat.completions.create(**CHAT, stream=True)
                parts = [event.choices[0].delta.content or "" async for event in stream]
                return "".join(parts)

        # One runs at a time, so of each pair one waits in the queue first.
        bodies = await asyncio.gather(raw(), raw())
        texts = await asyncio.gather(text(), text())
        assert list(texts) == [script.text] * 2
        for body in bodies:
            assert body.startswith(PING.decode() * 2)
            assert body.endswith("data: [DONE]\n\n")
        assert max(body.count(PING.decode()) for body in bodies) >= 4

    async def test_a_refusal_after_a_comment_is_an_error_event(self, stack: Stack) -> None:
        """The response has begun, so its status says nothing; openai's client raises the event."""
        await stack.add(Script(first_delay=0.4, error_after=0, error_code=400))
        options: dict[str, Any] = {"base_url": f"{stack.url}/v1", "api_key": "x"}
        async with openai.AsyncOpenAI(**options, max_retries=0) as client:
            stream = await client.chat.completions.create(**CHAT, stream=True)
            with pytest.raises(openai.APIError, match="scripted failure") as failure:
                await anext(stream.__aiter__())
        assert failure.value.type == "invalid_request_error"


async def test_a_fault_of_ours_ends_a_stream_with_an_error_event(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cut stream would look like a broken network; the log has the traceback."""
    await stack.add(Script())
    stream_before = Relay.stream

    async def stream_and_break(self: Relay, request: Any, worker: Any, stream: Any) -> None:
        await stream.output.write(b'data: {"choices":[]}\n\n')
        raise KeyError("our own fault")

    monkeypatch.setattr(Relay, "stream", stream_and_break)
    url = f"{stack.url}/v1/chat/completions"
    with caplog.at_level(logging.ERROR):
        async with (
            aiohttp.ClientSession() as http,
            http.post(url, json=CHAT | {"stream": True}) as response,
        ):
            body = await response.text()
    assert '"code":"internal_error"' in body
    assert "our own fault" not in body
    assert "our own fault" in caplog.text
    monkeypatch.setattr(Relay, "stream", stream_before)
