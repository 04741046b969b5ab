"""What a stranger may take of a process before any key is asked: connections, and time for each step.

`kodolly.http.downstream.protocol` bounds the bytes of a head, and each application those of a body.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson

from kodolly.errors import BadRequest

log = logging.getLogger(__name__)

# Levels of objects and lists in a JSON body. orjson reads 1,024, but writes no more than this, and
# libraries that call themselves for each level fail somewhere beyond.
MAX_NESTING = 254
# Share of the connections that must be free again before a second line about them is logged.
FREE_SHARE = 0.1


class Wait(Enum):
    """What a connection waits for its client to do."""

    HEAD = "head"  # send the rest of a request's head
    BODY = "body"  # send the rest of a request's body
    IDLE = "idle"  # send a request
    READ = "read"  # take bytes of a response, of which there is no progress


@dataclass(frozen=True)
class Bounds:
    """How many connections a process has at most, and the seconds a client has for each step."""

    max_connections: int = 10_000
    head_timeout: float = 20.0  # from the first byte of a head to its end
    body_timeout: float = 120.0  # from the end of a head to the end of the body
    idle_timeout: float = 75.0  # between two requests, or before the first one
    read_timeout: float = 300.0  # without taking a byte of a response that is ready for it

    def seconds(self, wait: Wait) -> float:
        """The time a client has for this step."""
        return {
            Wait.HEAD: self.head_timeout,
            Wait.BODY: self.body_timeout,
            Wait.IDLE: self.idle_timeout,
            Wait.READ: self.read_timeout,
        }[wait]


class ConnectionLimit:
    """Turns clients away beyond a number of connections, with one line in the log each time that begins."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._is_logged = False

    def is_exceeded(self, count: int) -> bool:
        """Whether the newest of `count` connections is one too many."""
        if count <= self._most:
            if self._is_logged and count <= self._most * (1 - FREE_SHARE):
                self._is_logged = False
            return False
        if not self._is_logged:
            self._is_logged = True
            log.error(
                "%d connections are open, as many as --max-connections allows: new ones are refused",
                self._most,
            )
        return True


def load_json(body: bytes | bytearray) -> Any:
    """The value of a JSON body. Raises BadRequest, also for more than MAX_NESTING levels."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the request body is not valid JSON: {error}") from error
    # A body that is shorter, or has fewer brackets, cannot be too deep.
    if len(body) > 2 * MAX_NESTING and body.count(b"[") + body.count(b"{") > MAX_NESTING:
        try:
            orjson.dumps(value)
        except orjson.JSONEncodeError as error:
            raise BadRequest(
                f"the request body nests lists and objects more than {MAX_NESTING} levels deep"
            ) from error
    return value
