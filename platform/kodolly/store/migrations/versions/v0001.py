"""Responses, their chunks and items, conversations, and the processes that serve."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    op.create_table(
        "processes",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("beat", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "responses",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("background", sa.Boolean, nullable=False),
        sa.Column("conversation_id", sa.String),
        sa.Column("previous_response_id", sa.String),
        sa.Column("prompt_token_ids", sa.LargeBinary),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("completed_at", sa.Float),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("last_seq", sa.Integer, nullable=False),
        sa.Column("run_by", sa.String),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("responses_owner", "responses", ["owner", "bytes"])
    op.create_index("responses_expires", "responses", ["expires_at"])
    op.create_index("responses_run_by", "responses", ["run_by"])
    op.create_table(
        "conversations",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("conversations_owner", "conversations", ["owner", "bytes"])
    op.create_index("conversations_expires", "conversations", ["expires_at"])
    op.create_table(
        "items",
        sa.Column("row", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("id", sa.String, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("response_id", sa.String, sa.ForeignKey("responses.id", ondelete="CASCADE")),
        sa.Column(
            "conversation_id", sa.String, sa.ForeignKey("conversations.id", ondelete="CASCADE")
        ),
        sa.Column("role", sa.String, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
    )
    op.create_index("items_response", "items", ["response_id", "row"])
    op.create_index("items_conversation", "items", ["conversation_id", "row"])
    op.create_index("items_id", "items", ["id"])
    # On SQLite `row` is the order of commits; PostgreSQL commits out of order, and has no use for it.
    row = [sa.Column("row", sa.Integer, primary_key=True)] if is_sqlite else []
    key = sa.UniqueConstraint if is_sqlite else sa.PrimaryKeyConstraint
    op.create_table(
        "chunks",
        *row,
        sa.Column(
            "response_id",
            sa.String,
            sa.ForeignKey("responses.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("deltas", sa.Text, nullable=False),
        sa.Column("token_ids", sa.LargeBinary),
        key("response_id", "seq"),
        sqlite_autoincrement=True,
    )
