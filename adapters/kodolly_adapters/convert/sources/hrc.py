"""The human-rights corpus (HRC): counsel and decisions of the National Human Rights Commission of Korea.

JSON lines with Korean keys, in two shapes: the corpus (a question made from a case, its answer, and
ChatGPT's own answer, which is left) and the counsel cases it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..options import Options
from ..reading.source import Drafts, Licence, Source
from ..schema import Draft, Refusal

QUESTION, ANSWER = "질의", "상담례, 결정례 기반 답변"
CASE, CASE_ANSWER = "상담 내용", "원본 상담 답변"


class Record(msgspec.Struct, gc=False):
    """A line of either file."""

    question: str | None = msgspec.field(name=QUESTION, default=None)
    answer: str | None = msgspec.field(name=ANSWER, default=None)
    case: str | None = msgspec.field(name=CASE, default=None)
    case_answer: str | None = msgspec.field(name=CASE_ANSWER, default=None)
    number: str | int | None = msgspec.field(name="번호", default=None)


def drafts(record: Record, options: Options) -> Drafts:
    """One row a line."""
    name = "" if record.number is None else str(record.number)
    corpus = record.question is not None
    asked = record.question if corpus else record.case
    answer = record.answer if corpus else record.case_answer
    if asked is None:
        yield Refusal("no-instruction", "the line has no question", name)
    elif answer is None:
        yield Refusal("no-output", "the line has no answer", name)
    else:
        yield Draft(asked, "", answer, id=name)


def looks_like(record: Mapping[str, Any]) -> bool:
    """The Korean keys of either file."""
    return (QUESTION in record and ANSWER in record) or (CASE in record and CASE_ANSWER in record)


HRC = Source(
    name="hrc",
    title="Human rights corpus (HRC)",
    licence=Licence(
        "CC BY-SA 4.0",
        "https://creativecommons.org/licenses/by-sa/4.0/",
        commercial=True,
        derivatives=True,
        consequence="Rows may be handed on under the same licence, with their authors named.",
    ),
    record=Record,
    first_keys=frozenset({"번호", "종류", QUESTION, CASE}),
    looks_like=looks_like,
    drafts=drafts,
    patterns=("humane_right_copus*", "counsel.jsonl*"),
)
