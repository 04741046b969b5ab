"""The sets in which a record is one question and its answer: Dolly, Korean Alpaca, chatbot data and HRC."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from ..options import Options
from ..reading.source import Drafts, Licence, Source
from ..schema import Draft, Rejection
from .common import WithId, creative_commons, has_keys
from .kovicuna import LICENCE as KOVICUNA_LICENCE

CATEGORIES = {
    "brainstorming", "classification", "closed_qa", "creative_writing", "general_qa",
    "information_extraction", "open_qa", "summarization",
}  # fmt: skip


def _row(
    question: str | None,
    answer: str | None,
    terms: tuple[str, str, str] = ("record", "instruction", "output"),
    id_: str = "",
    context: str | None = None,
) -> Draft | Rejection:
    """The row of a record; `terms` are what the source calls a record, a question and an answer."""
    if question is None:
        return Rejection("no-instruction", f"the {terms[0]} has no {terms[1]}", id_)
    if answer is None:
        return Rejection("no-output", f"the {terms[0]} has no {terms[2]}", id_)
    return Draft(question, context or "", answer, id=id_)


class DollyRecord(WithId, gc=False):
    """databricks-dolly-15k and its Korean translations (jsonl)."""

    instruction: str | None = None
    context: str | None = None
    response: str | None = None
    category: str | None = None


def dolly_drafts(record: DollyRecord, options: Options) -> Drafts:
    """One row a record, in its own category."""
    terms = ("record", "instruction", "response")
    row = _row(record.instruction, record.response, terms, record.id_text, record.context)
    if isinstance(row, Draft):
        if record.category in CATEGORIES:
            row.category = record.category
        else:
            row.notes = ("unknown-category",)
    yield row


DOLLY = Source(
    name="dolly",
    title="databricks-dolly-15k",
    licence=creative_commons(
        "BY-SA 3.0", "Rows may be handed on under the same licence, with Databricks named."
    ),
    record=DollyRecord,
    first_keys=frozenset({"instruction", "context", "response", "category", "id"}),
    looks_like=has_keys({"instruction", "response"}),
    drafts=dolly_drafts,
    patterns=("databricks-dolly-15k*.jsonl",),
)


class AlpacaRecord(WithId, gc=False):
    """KoAlpaca v1.0 (json) and v1.1 (jsonl; no input, but a url), and KoVicuna's Alpaca-style file."""

    instruction: str | None = None
    output: str | None = None
    input: str | None = None


def alpaca_drafts(record: AlpacaRecord, options: Options) -> Drafts:
    """One row a record; `input` is its context, which is empty where the input is missing or null."""
    yield _row(record.instruction, record.output, id_=record.id_text, context=record.input)


KOALPACA = Source(
    name="koalpaca",
    title="KoAlpaca",
    licence=creative_commons("BY-NC 4.0", "A model trained on it must not be used commercially."),
    record=AlpacaRecord,
    first_keys=frozenset({"instruction", "input", "output", "id", "url"}),
    looks_like=has_keys({"instruction", "output"}, without="response"),
    drafts=alpaca_drafts,
    patterns=("ko_alpaca_data*.json", "KoAlpaca_v1.1*.jsonl"),
)

# Its records look like KoAlpaca's but have another licence, so only the file's name tells them apart.
KOVICUNA_ALPACA = replace(
    KOALPACA,
    name="kovicuna-alpaca",
    title="KoVicuna, Alpaca style",
    licence=KOVICUNA_LICENCE,
    patterns=("ko_alpaca_style_dataset*",),
    by_name=True,
)


class ChatbotRecord(msgspec.Struct, gc=False):
    """A line of songys' `ChatbotData.csv`; one that is cut short has no answer."""

    Q: str | None = None
    A: str | None = None
    label: str | None = None


def chatbot_drafts(record: ChatbotRecord, options: Options) -> Drafts:
    """One row a line; the label (a mood) is not used."""
    yield _row(record.Q, record.A, ("line", "question", "answer"))


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
    record=ChatbotRecord,
    first_keys=frozenset({"Q"}),
    looks_like=has_keys({"Q", "A"}),
    drafts=chatbot_drafts,
    patterns=("ChatbotData*.csv",),
    layout="csv",
)

QUESTION, ANSWER = "질의", "상담례, 결정례 기반 답변"
CASE, CASE_ANSWER = "상담 내용", "원본 상담 답변"


class HrcRecord(msgspec.Struct, gc=False):
    """A line of the human-rights corpus, without ChatGPT's answer; or of the cases it was made from."""

    question: str | None = msgspec.field(name=QUESTION, default=None)
    answer: str | None = msgspec.field(name=ANSWER, default=None)
    case: str | None = msgspec.field(name=CASE, default=None)
    case_answer: str | None = msgspec.field(name=CASE_ANSWER, default=None)
    number: str | int | None = msgspec.field(name="번호", default=None)


def hrc_drafts(record: HrcRecord, options: Options) -> Drafts:
    """One row a line."""
    id_ = "" if record.number is None else str(record.number)
    is_case = record.question is None
    question = record.case if is_case else record.question
    answer = record.case_answer if is_case else record.answer
    yield _row(question, answer, ("line", "question", "answer"), id_)


HRC = Source(
    name="hrc",
    title="Human rights corpus (HRC)",
    licence=creative_commons(
        "BY-SA 4.0", "Rows may be handed on under the same licence, with their authors named."
    ),
    record=HrcRecord,
    first_keys=frozenset({"번호", "종류", QUESTION, CASE}),
    looks_like=has_keys({QUESTION, ANSWER}, {CASE, CASE_ANSWER}),
    drafts=hrc_drafts,
    patterns=("humane_right_copus*", "counsel.jsonl*"),
)
