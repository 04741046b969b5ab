"""Requests whose head is, byte for byte, one that the application has let in before.

A client that calls the same path again and again, such as a worker with its heartbeats, sends the same
head each time. What the application decides by a head alone (host, origin, token, kind of body) need not
be decided again, and neither parser nor task is needed: the body goes straight to a function.
Whatever is unusual goes the usual way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

MAX_HEADS = 8192  # more than a controller has workers
MAX_BODY = 64 * 1024  # bytes
# Besides the head's end, which both sides of `partition` need.
HEAD_END = b"\r\n\r\n"
# Headers by which a connection, or the way a body is sent, is not the usual one.
UNUSUAL = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"trailer"})

# Makes the JSON of a 200 out of a request's body; None: the application has to look at it.
Answer = Callable[[bytes], bytes | None]


@dataclass(frozen=True, slots=True)
class KnownHead:
    """What to do with a body of `length` bytes."""

    length: int
    answer: Answer


class KnownHeads:
    """Those of one server, at most MAX_HEADS. Its application adds them once it has let one in."""

    def __init__(self) -> None:
        self._heads: dict[bytes, KnownHead] = {}

    def __len__(self) -> int:
        return len(self._heads)

    def get(self, head: bytes) -> KnownHead | None:
        """What is known of these bytes."""
        return self._heads.get(head)

    def add(self, head: bytes, headers: Iterable[tuple[bytes, bytes]], answer: Answer) -> None:
        """From now on `answer` takes the body of a request with this head, if the head is a usual one.

        `headers`: the same head as it was parsed, names in lower case.
        """
        names = [name for name, _ in headers]
        values = dict(headers)
        length = values.get(b"content-length", b"")
        is_usual = names.count(b"content-length") == 1 and UNUSUAL.isdisjoint(names)
        keeps_alive = values.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        if not (head and is_usual and keeps_alive and length.isdigit()):
            return
        if int(length) > MAX_BODY:
            return
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[head] = KnownHead(int(length), answer)
