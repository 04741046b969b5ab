"""How processes tell each other what has changed, and how one process tells its own readers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import sqlalchemy as sa

CHANNEL = "kodolly"
CHUNK, END, CANCEL = "chunk", "end", "cancel"  # kinds of notice; the first has `id seq` lines
MAX_PAYLOAD = 7900  # PostgreSQL's bound is 8000 bytes


class Notices(Protocol):
    """Who passes a commit of this process on to its own readers."""

    def publish(self, response_id: str, seq: int, deltas: Sequence[Any]) -> None:
        """Events seq, seq + 1, ... of a response are committed."""

    def publish_end(self, response_id: str) -> None:
        """A response is finished, or deleted."""


def notify(connection: sa.Connection, kind: str, lines: Iterable[str]) -> None:
    """Tell every other process, once this transaction commits. SQLite's followers look for themselves."""
    if connection.dialect.name == "postgresql":
        for each in payloads(kind, lines):
            connection.execute(sa.select(sa.func.pg_notify(CHANNEL, each)))


def payloads(kind: str, lines: Iterable[str]) -> list[str]:
    """The texts of as few notices as can hold these lines."""
    result = []
    payload = kind
    for line in lines:
        if len(payload) + len(line) >= MAX_PAYLOAD:
            result.append(payload)
            payload = kind
        payload += f"\n{line}"
    return [*result, payload] if payload != kind else result
