"""The endpoint for heartbeats, past FastAPI: with many workers it is nearly all that a controller does."""

from __future__ import annotations

from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.groups import Group
from kodolly.controller.registry import Registry
from kodolly.errors import ApiError, TooLarge
from kodolly.http import bodies, server, token_guard
from kodolly.protocol.wire import HeartbeatRequest, parse

MAX_BODY = 2**20  # bytes
EXISTS, UNKNOWN = b'{"exist":true}', b'{"exist":false}'


def _start(body: bytes) -> dict[str, object]:
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length)]
    return {"type": "http.response.start", "status": 200, "headers": headers}


STARTS = {body: _start(body) for body in (EXISTS, UNKNOWN)}


class HeartbeatEndpoint:
    """POST /receive_heart_beat as an ASGI application."""

    def __init__(self, registry: Registry, dispatcher: Dispatcher) -> None:
        self._registry = registry
        self._dispatcher = dispatcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            bodies.require_json(scope["headers"])
            group = scope.get(token_guard.GROUP)
            body = EXISTS if self.take(await _read_body(receive), group) else UNKNOWN
        except ClientDisconnect:
            return
        except ApiError as error:
            response = await server.error_response(Request(scope), error)
            return await response(scope, receive, send)
        if know := scope.get("extensions", {}).get("kodolly.know"):
            know(partial(self._take_next, group))
        await send(STARTS[body])
        await send({"type": "http.response.body", "body": body})

    def take(self, body: bytes, group: Group | None = None) -> bool:
        """Takes a heartbeat; False if the worker must register again.

        `group`: whose token it came with; None for the controller's own. Raises BadRequest, and
        Forbidden for a worker of somebody else.
        """
        data = bodies.decode_object(body)
        if group is not None:
            self._check_owner(group, data.get("worker_name"))
        if self._registry.load_only_heartbeat(data):
            name, exists = str(data["worker_name"]), True
        else:
            request = parse(HeartbeatRequest, data)
            name = request.worker_name
            if group is not None:
                self._check_owner(group, name)
                if request.kodolly is not None:
                    group.check_extension(request.kodolly)
            exists = self._registry.heartbeat(request)
            self._registry.expect_extension(name, data.get("kodolly"))
        self._dispatcher.reset(name)  # its queue counts every request sent there before
        return exists

    def _take_next(self, group: Group | None, body: bytes) -> bytes | None:
        """A further heartbeat with the same head; None for one that is to be refused."""
        try:
            return EXISTS if self.take(body, group) else UNKNOWN
        except ApiError:
            return None

    def _check_owner(self, group: Group, name: object) -> None:
        if isinstance(name, str) and self._registry.has(name):
            group.check_owner(name, self._registry.owner(name))


async def _read_body(receive: Receive) -> bytes:
    """A request's body. Cheaper than `bodies.read_body`, which looks at the headers first."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise TooLarge(f"the request body has more than {MAX_BODY} bytes")
        more = message.get("more_body", False)
    return b"".join(parts)
