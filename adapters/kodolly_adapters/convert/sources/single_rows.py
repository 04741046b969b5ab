"""Sets whose record is one row: Korean Alpaca, KoVicuna's Alpaca-style file, Dolly, ChatbotData and HRC.

The human-rights corpus (HRC) holds counsel and decisions of the National Human Rights Commission of Korea as JSON
lines with Korean keys, in two shapes: the corpus (a question made from a case, its answer, and ChatGPT's own
answer, which is left) and the counsel cases it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..options import Options
from ..reading.source import Drafts, Licence, Source
from ..schema import OPEN_QA, Draft, Refusal
from .kovicuna import LICENCE as KOVICUNA_LICENCE

DOLLY_CATEGORIES = frozenset(
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
HRC_QUESTION, HRC_ANSWER = "질의", "상담례, 결정례 기반 답변"
HRC_CASE, HRC_CASE_ANSWER = "상담 내용", "원본 상담 답변"
Id = str | int | None


class Alpaca(msgspec.Struct, gc=False):
    """One instruction; a missing or null input is no input. KoAlpaca v1.1 has no input but may have a url."""

    instruction: str | None = None
    output: str | None = None
    input: str | None = None
    id: Id = None


class Dolly(msgspec.Struct, gc=False):
    """A row as it will be written."""

    instruction: str | None = None
    context: str | None = None
    response: str | None = None
    category: str | None = None
    id: Id = None


class Chat(msgspec.Struct, gc=False):
    """One line of the CSV; a line that is cut short has no answer."""

    Q: str | None = None
    A: str | None = None
    label: str | None = None


class Counsel(msgspec.Struct, gc=False):
    """A line of either file of HRC."""

    question: str | None = msgspec.field(name=HRC_QUESTION, default=None)
    answer: str | None = msgspec.field(name=HRC_ANSWER, default=None)
    case: str | None = msgspec.field(name=HRC_CASE, default=None)
    case_answer: str | None = msgspec.field(name=HRC_CASE_ANSWER, default=None)
    number: Id = msgspec.field(name="번호", default=None)


def alpaca_drafts(record: Alpaca, options: Options) -> Drafts:
    """One row a record."""
    name = _name(record.id)
    if record.instruction is None:
        yield Refusal("no-instruction", "the record has no instruction", name)
    elif record.output is None:
        yield Refusal("no-output", "the record has no output", name)
    else:
        yield Draft(record.instruction, record.input or "", record.output, id=name)


def dolly_drafts(record: Dolly, options: Options) -> Drafts:
    """One row a record, in its own category."""
    name = _name(record.id)
    if record.instruction is None:
        yield Refusal("no-instruction", "the record has no instruction", name)
    elif record.response is None:
        yield Refusal("no-output", "the record has no response", name)
    else:
        draft = Draft(record.instruction, record.context or "", record.response, OPEN_QA, name)
        if record.category in DOLLY_CATEGORIES:
            draft.category = record.category
        else:
            draft.notes = ("unknown-category",)
        yield draft


def chat_drafts(record: Chat, options: Options) -> Drafts:
    """One row a line."""
    if record.Q is None:
        yield Refusal("no-instruction", "the line has no question")
    elif record.A is None:
        yield Refusal("no-output", "the line has no answer")
    else:
        yield Draft(record.Q, "", record.A)


def counsel_drafts(record: Counsel, options: Options) -> Drafts:
    """One row a line."""
    name, asked, answer = _name(record.number), record.question, record.answer
    if asked is None:
        asked, answer = record.case, record.case_answer
    if asked is None:
        yield Refusal("no-instruction", "the line has no question", name)
    elif answer is None:
        yield Refusal("no-output", "the line has no answer", name)
    else:
        yield Draft(asked, "", answer, id=name)


def _name(number: Id) -> str:
    return "" if number is None else str(number)


def is_alpaca(record: Mapping[str, Any]) -> bool:
    """Instruction and output; Dolly calls its answer response."""
    return "instruction" in record and "output" in record and "response" not in record


def is_dolly(record: Mapping[str, Any]) -> bool:
    """Instruction and response."""
    return "instruction" in record and "response" in record


def is_chat(record: Mapping[str, Any]) -> bool:
    """Q and A."""
    return "Q" in record and "A" in record


def is_counsel(record: Mapping[str, Any]) -> bool:
    """The Korean keys of either file."""
    return {HRC_QUESTION, HRC_ANSWER} <= record.keys() or {
        HRC_CASE,
        HRC_CASE_ANSWER,
    } <= record.keys()


_ALPACA_KEYS = frozenset({"instruction", "input", "output", "id", "url"})

# The shape is KoAlpaca's, the terms are not: only the file's name tells.
KOVICUNA_ALPACA = Source(
    name="kovicuna-alpaca",
    title="KoVicuna, Alpaca style",
    licence=KOVICUNA_LICENCE,
    record=Alpaca,
    first_keys=_ALPACA_KEYS,
    looks_like=is_alpaca,
    drafts=alpaca_drafts,
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
    record=Alpaca,
    first_keys=_ALPACA_KEYS,
    looks_like=is_alpaca,
    drafts=alpaca_drafts,
    patterns=("ko_alpaca_data*.json", "KoAlpaca_v1.1*.jsonl"),
)

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
    record=Dolly,
    first_keys=frozenset({"instruction", "context", "response", "category", "id"}),
    looks_like=is_dolly,
    drafts=dolly_drafts,
    patterns=("databricks-dolly-15k*.jsonl",),
)

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
    record=Chat,
    first_keys=frozenset({"Q"}),
    looks_like=is_chat,
    drafts=chat_drafts,
    patterns=("ChatbotData*.csv",),
    layout="csv",
)

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
    record=Counsel,
    first_keys=frozenset({"번호", "종류", HRC_QUESTION, HRC_CASE}),
    looks_like=is_counsel,
    drafts=counsel_drafts,
    patterns=("humane_right_copus*", "counsel.jsonl*"),
)
