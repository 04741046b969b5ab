"""A client that asks for a stream and does not read it: its place does not stay taken."""

import asyncio
import json
import socket
from urllib.parse import urlsplit

import pytest
from support.processes import eventually
from support.script import Script

from kodolly.settings import ApiSettings

from .conftest import Stack
from .test_resume import CHAT, events

MUCH = Script(tokens=("가" * 4000,), length=1000)  # 12 MB: more than all buffers hold


@pytest.fixture
def settings() -> ApiSettings:
    return ApiSettings(client_timeout=1.0, worker_limit=1)


@pytest.fixture
def send_buffer() -> int:
    return 8192


def asks_and_does_not_read(url: str) -> socket.socket:
    """The connection of a client that has sent its request."""
    to = urlsplit(url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.connect((to.hostname, to.port))
    body = json.dumps(CHAT | {"stream": True}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    client.sendall(head.encode() + body)
    return client


async def test_a_client_that_reads_nothing_is_given_up(stack: Stack) -> None:
    """At its bound the engine stops, the next one gets the place, and the connection is broken."""
    engine = await stack.add(MUCH)
    with asks_and_does_not_read(stack.url) as client:
        await eventually(lambda: engine.running == 1)
        await eventually(lambda: stack.admission.running("demo") == 0, timeout=20)
        await eventually(lambda: engine.running == 0)
        engine.script = Script()
        assert (await asyncio.wait_for(events(stack), 20))[-1]["choices"]
        left = await asyncio.wait_for(asyncio.to_thread(read_all, client), 20)
        assert not left.endswith(b"0\r\n\r\n")  # nothing that looks like an end


def read_all(client: socket.socket) -> bytes:
    """What there is until the connection ends."""
    parts = []
    while part := client.recv(2**16):
        parts.append(part)
    return b"".join(parts)
