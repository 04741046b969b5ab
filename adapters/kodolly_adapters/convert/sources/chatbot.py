"""Chatbot data by songys (`ChatbotData.csv`): short questions and answers, with a mood label.

A record is one line {"Q", "A", "label"}.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..options import Options
from ..reading.source import Drafts, Licence, Source
from ..schema import Draft, Refusal


class Record(msgspec.Struct, gc=False):
    """One line; a line that is cut short has no answer."""

    Q: str | None = None
    A: str | None = None
    label: str | None = None


def drafts(record: Record, options: Options) -> Drafts:
    """One row a line."""
    if record.Q is None:
        yield Refusal("no-instruction", "the line has no question")
    elif record.A is None:
        yield Refusal("no-output", "the line has no answer")
    else:
        yield Draft(record.Q, "", record.A)


def looks_like(record: Mapping[str, Any]) -> bool:
    """Q and A."""
    return "Q" in record and "A" in record


CHATBOT = Source(
    name="chatbot-data",
    title="Chatbot data for Korean",
    licence=Licence(
        "MIT",
        "https://github.com/songys/Chatbot_data/blob/master/LICENSE",
        commercial=True,
        derivatives=True,
        consequence="Free to use with its copyright notice.",
    ),
    record=Record,
    first_keys=frozenset({"Q"}),
    looks_like=looks_like,
    drafts=drafts,
    patterns=("ChatbotData*.csv",),
    layout="csv",
)
