"""Korean Alpaca: KoAlpaca v1.0 (json) and v1.1 (jsonl), and KoVicuna's alpaca-style file.

A record is {"instruction", "input", "output"}; v1.1 has no input but may have a url. The shape is the same
for both sources, their terms are not: only the file's name tells KoVicuna's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..options import Options
from ..reading.source import Drafts, Licence, Source
from ..schema import Draft, Refusal
from .kovicuna import LICENCE as KOVICUNA_LICENCE


class Record(msgspec.Struct, gc=False):
    """One instruction; a missing or null input is no input."""

    instruction: str | None = None
    output: str | None = None
    input: str | None = None
    id: str | int | None = None


def drafts(record: Record, options: Options) -> Drafts:
    """One row a record."""
    name = "" if record.id is None else str(record.id)
    if record.instruction is None:
        yield Refusal("no-instruction", "the record has no instruction", name)
    elif record.output is None:
        yield Refusal("no-output", "the record has no output", name)
    else:
        yield Draft(record.instruction, record.input or "", record.output, id=name)


def looks_like(record: Mapping[str, Any]) -> bool:
    """Instruction and output; Dolly calls its answer response."""
    return "instruction" in record and "output" in record and "response" not in record


_FIRST_KEYS = frozenset({"instruction", "input", "output", "id", "url"})

KOVICUNA_ALPACA = Source(
    name="kovicuna-alpaca",
    title="KoVicuna, Alpaca style",
    licence=KOVICUNA_LICENCE,
    record=Record,
    first_keys=_FIRST_KEYS,
    looks_like=looks_like,
    drafts=drafts,
    patterns=("ko_alpaca_style_dataset*",),
    by_name=True,
)

KOALPACA = Source(
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
    first_keys=_FIRST_KEYS,
    looks_like=looks_like,
    drafts=drafts,
    patterns=("ko_alpaca_data*.json", "KoAlpaca_v1.1*.jsonl"),
)
