"""What the store returns, and the names that both of its sides use."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

TERMINAL = ("completed", "incomplete", "failed", "cancelled")
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")

Item = dict[str, Any]  # one of OpenAI's, with its "id"


def owner_of(key: str) -> str:
    """The name under which a client's things are kept: a hash of its key."""
    return hashlib.sha256(b"kodolly owner:" + key.encode()).hexdigest()[:32]


def is_id(text: Any) -> bool:
    """Whether a client's text can be an id at all; PostgreSQL takes no NUL character, for one."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


@dataclass
class ResponseRecord:
    """A stored response. Times: seconds since 1970. The store fills in what has no use to a caller."""

    id: str
    owner: str
    model: str
    status: str  # queued, in_progress, or one of TERMINAL
    request: dict[str, Any]
    created_at: float
    background: bool = False
    conversation_id: str | None = None
    previous_response_id: str | None = None
    prompt_token_ids: list[int] | None = None
    completed_at: float | None = None
    expires_at: float = 0.0
    result: dict[str, Any] | None = None
    last_seq: int = -1  # of the newest event; -1: none
    run_by: str | None = None
    cancel_requested: bool = False
    bytes: int = 0


@dataclass
class StoredEvents:
    """All events of a response so far: event N is deltas[N]."""

    deltas: list[Any] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)

    @property
    def next_seq(self) -> int:
        """The number of the event that comes next."""
        return len(self.deltas)


@dataclass
class ConversationRecord:
    """A conversation, without its items. Times: seconds since 1970."""

    id: str
    owner: str
    metadata: dict[str, Any]
    created_at: float
    expires_at: float = 0.0
    bytes: int = 0


@dataclass
class ItemPage:
    """Some of a list of items, in the order that was asked for."""

    items: list[Item]
    has_more: bool
