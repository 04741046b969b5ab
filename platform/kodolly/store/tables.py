"""The tables. migrations/ makes them; a test compares the two.

Times are seconds since 1970 by the clock of the process that wrote them. JSON is kept as text: PostgreSQL's
own JSON types refuse a NUL character, which a model may well write.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import orjson
import sqlalchemy as sa

metadata = sa.MetaData()


class Json(sa.types.TypeDecorator[Any]):
    """A JSON value, as text."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        """To the database."""
        return None if value is None else orjson.dumps(value).decode()

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """From the database."""
        return None if value is None else orjson.loads(value)


def pack_token_ids(token_ids: Sequence[int] | None) -> bytes | None:
    """Four bytes a token, little-endian; None for no tokens."""
    return struct.pack(f"<{len(token_ids)}I", *token_ids) if token_ids else None


class TokenIds(sa.types.TypeDecorator[list[int]]):
    """Token ids, four bytes each, little-endian."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> bytes | None:
        """To the database."""
        return pack_token_ids(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> list[int] | None:
        """From the database."""
        return list(struct.unpack(f"<{len(value) // 4}I", value)) if value else None


# A serving process. It raises `beat` twice a second; whoever sees it unchanged for too long deletes the row.
processes = sa.Table(
    "processes",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("beat", sa.BigInteger, nullable=False),
)

responses = sa.Table(
    "responses",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("owner", sa.String, nullable=False),  # see records.owner_of
    sa.Column("model", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("request", Json, nullable=False),
    sa.Column("background", sa.Boolean, nullable=False),
    sa.Column("conversation_id", sa.String),
    sa.Column("previous_response_id", sa.String),
    sa.Column("prompt_token_ids", TokenIds),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("completed_at", sa.Float),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("result", Json),
    sa.Column("last_seq", sa.Integer, nullable=False),  # once finished; until then see chunks
    sa.Column("run_by", sa.String),  # the process that makes the answer; null once it is finished
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Index("responses_owner", "owner", "bytes"),
    sa.Index("responses_expires", "expires_at"),
    sa.Index("responses_run_by", "run_by"),
)

conversations = sa.Table(
    "conversations",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("owner", sa.String, nullable=False),
    sa.Column("metadata", Json, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Index("conversations_owner", "owner", "bytes"),
    sa.Index("conversations_expires", "expires_at"),
)

# An item belongs to a response or to a conversation. Its id may occur again: clients send items back.
items = sa.Table(
    "items",
    metadata,
    sa.Column(
        "row", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True
    ),  # their order
    sa.Column("id", sa.String, nullable=False),
    sa.Column("owner", sa.String, nullable=False),
    sa.Column("response_id", sa.String, sa.ForeignKey("responses.id", ondelete="CASCADE")),
    sa.Column("conversation_id", sa.String, sa.ForeignKey("conversations.id", ondelete="CASCADE")),
    sa.Column("role", sa.String, nullable=False),  # input or output
    sa.Column("data", Json, nullable=False),
    sa.Index("items_response", "response_id", "row"),
    sa.Index("items_conversation", "conversation_id", "row"),
    sa.Index("items_id", "id"),
)

# Event N of a response is deltas[N - seq] of its chunk. On SQLite there is a column `row` as well, which
# counts up in the order of commits: see follower.py.
chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column(
        "response_id",
        sa.String,
        sa.ForeignKey("responses.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("n", sa.Integer, nullable=False),
    sa.Column("deltas", Json, nullable=False),
    sa.Column("token_ids", TokenIds),
)

# What a client has uploaded, and what a batch has made.
files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("owner", sa.String, nullable=False),
    sa.Column("filename", sa.String, nullable=False),
    sa.Column("purpose", sa.String, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Index("files_owner", "owner", "bytes"),
    sa.Index("files_expires", "expires_at"),
)

file_parts = sa.Table(
    "file_parts",
    metadata,
    sa.Column(
        "file_id", sa.String, sa.ForeignKey("files.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("owner", sa.String, nullable=False),
    sa.Column("endpoint", sa.String, nullable=False),
    sa.Column("input_file_id", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("metadata", Json, nullable=False),
    sa.Column("times", Json, nullable=False),  # in_progress_at and so on
    sa.Column("counts", Json, nullable=False),  # once finished; until then see batch_lines
    sa.Column("errors", Json),
    sa.Column("output_file_id", sa.String),
    sa.Column("error_file_id", sa.String),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("deadline", sa.Float, nullable=False),  # of its completion window
    sa.Column("expires_at", sa.Float, nullable=False),  # when the row goes
    sa.Column("run_by", sa.String),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Index("batches_owner", "owner", "created_at"),
    sa.Index("batches_expires", "expires_at"),
    sa.Index("batches_run_by", "run_by"),
)

# The requests of a batch that is not finished. A line with a result is done, whatever dies after that.
batch_lines = sa.Table(
    "batch_lines",
    metadata,
    sa.Column(
        "batch_id", sa.String, sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("custom_id", sa.String, nullable=False),
    sa.Column("body", Json, nullable=False),
    sa.Column("result", sa.Text),  # the line of the output file
    sa.Column("is_error", sa.Boolean, nullable=False),
    sa.UniqueConstraint("batch_id", "custom_id"),
)
