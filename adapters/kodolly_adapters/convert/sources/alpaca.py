"""Korean Alpaca (KoAlpaca v1.0 json, v1.1 jsonl, KoVicuna's alpaca-style file).

A record is {"instruction", "input", "output"}; v1.1 has no input. Source: facts of Beomi/KoAlpaca.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..options import Options
from ..rows import Draft, Refusal
from ..source import Drafts, Licence, Source


class Record(msgspec.Struct, gc=False):
    """One instruction; a missing or null input is no input."""

    instruction: str
    output: str | None = None
    input: str | None = None
    id: str | int | None = None


def drafts(record: Record, options: Options) -> Drafts:
    """One row a record."""
    if record.output is None:
        yield Refusal("no-output", "the record has no output", str(record.id or ""))
        return
    yield Draft(record.instruction, record.input or "", record.output, id=str(record.id or ""))


def looks_like(record: Mapping[str, Any]) -> bool:
    """Instruction and output, and nothing of Dolly's."""
    return "instruction" in record and "output" in record


ALPACA = Source(
    name="koalpaca",
    title="KoAlpaca",
    licence=Licence(
        "CC BY-NC 4.0",
        "https://creativecommons.org/licenses/by-nc/4.0/",
        commercial=False,
        derivatives=True,
        consequence="A model trained on it must not be used commercially.",
    ),
    record=Record,
    first_keys=frozenset({"instruction", "input", "output", "id"}),
    looks_like=looks_like,
    drafts=drafts,
    patterns=("ko_alpaca_data*.json", "KoAlpaca_v1.1*.jsonl", "ko_alpaca_style_dataset*.json"),
)
