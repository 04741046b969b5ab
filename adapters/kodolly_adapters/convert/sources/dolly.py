"""Dolly itself: databricks-dolly-15k and its Korean translations (jsonl).

A record is {"instruction", "context", "response", "category"}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..options import Options
from ..reading.source import Drafts, Licence, Source
from ..schema import OPEN_QA, Draft, Refusal

CATEGORIES = frozenset(
    {
        "brainstorming",
        "classification",
        "closed_qa",
        "creative_writing",
        "general_qa",
        "information_extraction",
        "open_qa",
        "summarization",
    }
)


class Record(msgspec.Struct, gc=False):
    """A row as it will be written."""

    instruction: str | None = None
    context: str | None = None
    response: str | None = None
    category: str | None = None
    id: str | int | None = None


def drafts(record: Record, options: Options) -> Drafts:
    """One row a record, in its own category."""
    name = "" if record.id is None else str(record.id)
    if record.instruction is None:
        yield Refusal("no-instruction", "the record has no instruction", name)
    elif record.response is None:
        yield Refusal("no-output", "the record has no response", name)
    else:
        known = record.category in CATEGORIES
        yield Draft(
            record.instruction,
            record.context or "",
            record.response,
            record.category if record.category is not None and known else OPEN_QA,
            name,
            notes=() if known else ("unknown-category",),
        )


def looks_like(record: Mapping[str, Any]) -> bool:
    """Instruction and response."""
    return "instruction" in record and "response" in record


DOLLY = Source(
    name="dolly",
    title="databricks-dolly-15k",
    licence=Licence(
        "CC BY-SA 3.0",
        "https://creativecommons.org/licenses/by-sa/3.0/",
        commercial=True,
        derivatives=True,
        consequence="Rows may be handed on under the same licence, with Databricks named.",
    ),
    record=Record,
    first_keys=frozenset({"instruction", "context", "response", "category", "id"}),
    looks_like=looks_like,
    drafts=drafts,
    patterns=("databricks-dolly-15k*.jsonl",),
)
