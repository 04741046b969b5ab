"""A request whose head was let in before is answered at once; whatever is unusual goes to the application."""

import pytest
from starlette.types import Receive, Scope, Send
from support.wire import Wire, connected, turns

from kodolly.http.bounds import Bounds, Wait
from kodolly.http.downstream import known_heads
from kodolly.http.downstream.known_heads import KnownHeads
from kodolly.http.downstream.protocol import HttpProtocol, bounded

HEAD = b"POST /beat HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nX-Token: good\r\n\r\n"


class App:
    """Lets in who has the token, counts whom it saw, and takes further bodies but `odd!`."""

    def __init__(self) -> None:
        self.requests = 0
        self.bodies: list[bytes] = []  # taken without the application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        body = (await receive()).get("body", b"")
        status = 200 if (b"x-token", b"good") in scope["headers"] else 401
        if status == 200:
            scope["extensions"]["kodolly.know"](self.take)
        head = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    def take(self, body: bytes) -> bytes | None:
        if body == b"odd!":
            return None
        self.bodies.append(body)
        return b"{}"


def client(app: App, heads: KnownHeads | None = None) -> tuple[HttpProtocol, Wire]:
    return connected(app, bounded(Bounds(), KnownHeads() if heads is None else heads))


async def test_a_head_that_was_let_in_is_not_looked_at_again() -> None:
    """The next body goes to the function, on this connection and on any other of the server."""
    app, heads = App(), KnownHeads()
    for _ in range(2):
        protocol, wire = client(app, heads)
        for body in (b"1111", b"2222"):
            protocol.data_received(HEAD + body)
            await turns()
        assert wire.writes[-1].startswith(b"HTTP/1.1 200 OK\r\n")
        assert wire.writes[-1].endswith(b"\r\ncontent-length: 2\r\n\r\n{}")
    assert (app.requests, app.bodies) == (1, [b"2222", b"1111", b"2222"])


async def test_another_head_is_judged_by_the_application() -> None:
    """A wrong token is refused, as often as it comes, also right after the right one."""
    app = App()
    protocol, wire = client(app)
    wrong = HEAD.replace(b"good", b"evil") + b"1111"
    for data in (wrong, wrong, HEAD + b"2222", wrong):
        protocol.data_received(data)
        await turns()
    answers = [write.split(b" ", 2)[1] for write in wire.writes]
    assert answers == [b"401", b"401", b"200", b"401"]
    assert (app.requests, app.bodies) == (4, [])


async def test_a_body_may_come_after_its_head() -> None:
    """In as many pieces as it likes; until it is whole its client can be late."""
    app = App()
    protocol, wire = client(app)
    protocol.data_received(HEAD + b"1111")
    await turns()
    for piece in (HEAD[:20], HEAD[20:], b"22", b"22"):
        protocol.data_received(piece)
    await turns()
    assert (app.requests, len(wire.writes)) == (2, 2)  # its head came in pieces, so it was parsed
    for piece in (HEAD, b"33", b"33"):
        assert not app.bodies
        protocol.data_received(piece)
        if piece != b"33":
            awaited = protocol._awaited()
            assert awaited is not None
            assert awaited[0] is Wait.BODY
    assert app.bodies == [b"3333"]


async def test_what_follows_in_the_same_piece_is_not_lost() -> None:
    """Two requests at once are both answered, in their order."""
    app = App()
    protocol, wire = client(app)
    protocol.data_received(HEAD + b"1111")
    await turns()
    protocol.data_received(HEAD + b"2222" + HEAD + b"3333")
    await turns(20)
    assert b"".join(wire.writes).count(b"HTTP/1.1 200 OK") == 3
    assert [write[-4:] for write in wire.writes] == [b"1111", b"2222", b"3333"]


async def test_a_body_that_the_function_does_not_take_goes_to_the_application() -> None:
    app = App()
    protocol, wire = client(app)
    for body in (b"1111", b"odd!"):
        protocol.data_received(HEAD + body)
        await turns()
    assert (app.requests, app.bodies) == (2, [])
    assert wire.writes[-1].endswith(b"odd!")


async def test_a_request_behind_one_under_way_waits_for_its_turn() -> None:
    """Responses come in the order of their requests."""
    app = App()
    protocol, wire = client(app)
    protocol.data_received(HEAD + b"1111")
    await turns()
    protocol.data_received(HEAD.replace(b"good", b"slow") + b"2222")  # its task has not run yet
    protocol.data_received(HEAD + b"3333")
    await turns(20)
    assert [write.split(b" ", 2)[1] for write in wire.writes] == [b"200", b"401", b"200"]
    assert not app.bodies


@pytest.mark.parametrize(
    "change",
    [
        (b"X-Token", b"Connection: close\r\nX-Token"),
        (b"X-Token", b"Expect: 100-continue\r\nX-Token"),
        (b"Content-Length: 4", b"Transfer-Encoding: chunked"),
        (b"Content-Length: 4", b"Content-Length: 999999"),
    ],
    ids=["close", "expect", "chunked", "large"],
)
async def test_an_unusual_head_is_not_kept(change: tuple[bytes, bytes]) -> None:
    heads = KnownHeads()
    protocol, _ = client(App(), heads)
    protocol.data_received(HEAD.replace(*change) + b"4\r\n1111\r\n0\r\n\r\n")
    await turns()
    assert len(heads) == 0


async def test_so_many_heads_are_kept_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends another head each time takes no more memory in the end."""
    monkeypatch.setattr(known_heads, "MAX_HEADS", 10)
    heads = KnownHeads()
    protocol, _ = client(App(), heads)
    for number in range(25):
        protocol.data_received(HEAD.replace(b"Host", b"X-N: %d\r\nHost" % number) + b"1111")
        await turns()
        assert len(heads) <= 10
