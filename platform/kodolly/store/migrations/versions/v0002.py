"""Uploaded files, batches, and the lines of a batch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables of batches."""
    op.create_table(
        "files",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("filename", sa.String, nullable=False),
        sa.Column("purpose", sa.String, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_index("files_owner", "files", ["owner", "bytes"])
    op.create_index("files_expires", "files", ["expires_at"])
    op.create_table(
        "file_parts",
        sa.Column(
            "file_id", sa.String, sa.ForeignKey("files.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("endpoint", sa.String, nullable=False),
        sa.Column("input_file_id", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("times", sa.Text, nullable=False),
        sa.Column("counts", sa.Text, nullable=False),
        sa.Column("errors", sa.Text),
        sa.Column("output_file_id", sa.String),
        sa.Column("error_file_id", sa.String),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("deadline", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("run_by", sa.String),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
    )
    op.create_index("batches_owner", "batches", ["owner", "created_at"])
    op.create_index("batches_expires", "batches", ["expires_at"])
    op.create_index("batches_run_by", "batches", ["run_by"])
    op.create_table(
        "batch_lines",
        sa.Column(
            "batch_id", sa.String, sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("line", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("custom_id", sa.String, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("is_error", sa.Boolean, nullable=False),
        sa.UniqueConstraint("batch_id", "custom_id"),
    )
