"""Dialogues: ShareGPT's and OpenAI's lists of turns, and texts with a mark before each turn.

A record is {"id", "conversations" or "messages": [turn]}; a turn names its speaker in `from` or `role`, its text in
`value`, `content` or `text`. So `convert --conversations` writes them. KoVicuna (`ko_dataset*.json`) is such a set.

A row is one question and its answer. The study's table says "gpt -> instruction, human -> response", but the sample
beside it shows the human asking. So the human's turn is the instruction here, unless `kovicuna_roles` is `as-written`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import msgspec

from kodolly_templates.errors import TemplateError
from kodolly_templates.messages import plain_text

from ..cleaning.fixes import zero_width
from ..cleaning.rules import DROP, JOIN, OFF, all_rules
from ..options import Options
from ..reading.source import Drafts, Licence, Source
from ..schema import Draft, Exchange, Rejection
from .common import WithId, set_category

HUMANS = frozenset({"human", "user", "usr", "prompter", "사람", "사용자", "질문"})
MODELS = frozenset({"gpt", "chatgpt", "assistant", "bing", "bard", "bot", "model", "챗봇", "답변"})
SYSTEMS = frozenset({"system", "developer", "sys"})
_ROLES = (
    dict.fromkeys(HUMANS, "ask")
    | dict.fromkeys(MODELS, "answer")
    | dict.fromkeys(SYSTEMS, "system")
)
# The mark before a turn of a text: `<human>:` or `<usr>` at the start of a line, `### Human:` anywhere.
MARK = re.compile(
    r"^[ \t]*<(human|bot|usr|sys|사람|챗봇)>:?|###[ \t]*(human|user|assistant|system|사람|챗봇|질문|답변)[ \t]*:",
    re.MULTILINE | re.IGNORECASE,
)


class Turn(msgspec.Struct, gc=False):
    """One utterance. `context` is that of KoDolly's own dialogues."""

    speaker: str | None = msgspec.field(name="from", default=None)
    value: str | None = None
    role: str | None = None
    content: str | list[Any] | None = None
    text: str | None = None
    context: str | None = None


class Record(WithId, gc=False):
    """One conversation."""

    conversations: list[Turn] | None = None
    messages: list[Turn] | None = None
    category: str | None = None


class TextRecord(WithId, gc=False):
    """One conversation as a text, for example "<human>: ...\\n<bot>: ..."."""

    text: str | None = None


class Speech(NamedTuple):
    """`units` turns of the record, all of one speaker and without another's turn between them."""

    role: str  # "ask", "answer", "" for an unknown speaker, or "end" (only END)
    text: str
    units: int
    speaker: str | None
    context: str = ""
    fault: str = ""


END = Speech("end", "", 0, None)  # after the last turn: a question before it has no answer


def turn_count(record: Record | TextRecord) -> int:
    """How many turns the record holds, at least 1; the units of its drafts and rejections add up to this."""
    if isinstance(record, TextRecord):
        return len(_marked_turns(record.text or "")) or 1
    return len(record.conversations or record.messages or ()) or 1


def _marked_turns(text: str) -> list[Turn]:
    """The turns of a text; what stands before the first mark is a system message."""
    marks = list(MARK.finditer(text))
    if not marks:
        return []
    opening = text[: marks[0].start()].strip()
    turns = [Turn("system", opening)] if opening else []
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=True):
        turns.append(Turn((mark[1] or mark[2]).lower(), text[mark.end() : end].strip()))
    return turns


def _plain(turns: list[Turn]) -> list[Turn]:
    """The turns with speaker and value, whatever the set calls them.

    One that is no text, a picture for example, has no speaker, and in `text` the reason.
    """
    if all(turn.speaker is not None and turn.value is not None for turn in turns):
        return turns
    plain: list[Turn] = []
    for number, turn in enumerate(turns):
        try:
            value = turn.value or turn.text or plain_text(turn.content, number)
            plain.append(Turn(turn.speaker or turn.role, value, context=turn.context))
        except TemplateError as error:
            plain.append(Turn(text=str(error)))
    return plain


def _role(turn: Turn) -> str:
    speaker = turn.speaker or ""
    return _ROLES.get(speaker) or _ROLES.get(speaker.strip().lower(), "")


def _speeches(turns: list[Turn], mode: str) -> Iterator[Speech | Rejection]:
    """The turns in order; `mode` (of rule same-role) decides about several by one speaker in a row."""
    for role, group in groupby(turns, _role):
        speeches = [
            Speech(role, turn.value or "", 1, turn.speaker, turn.context or "", turn.text or "")
            for turn in group
        ]
        if role and mode == JOIN:
            text = "\n".join(speech.text for speech in speeches)
            context = "\n".join(speech.context for speech in speeches if speech.context)
            yield speeches[0]._replace(text=text, units=len(speeches), context=context)
        elif role and mode == DROP:
            for speech in speeches[1:]:
                detail = f"{speech.speaker} speaks again: only the first turn is kept"
                yield Rejection("same-role", detail)
            yield speeches[0]
        else:
            yield from speeches


def _pairs(turns: list[Turn], mode: str) -> Iterator[Exchange | Rejection]:
    """Each question with the answer right after it; every other speech is rejected."""
    question: Speech | None = None
    number = 0
    for speech in [*_speeches(turns, mode), END]:
        if isinstance(speech, Rejection):
            yield speech._replace(turn=number)
        elif speech.role == "answer" and question is not None:
            units = question.units + speech.units
            yield Exchange(question.text, speech.text, number, units, question.context)
            question = None
            number += 1
        else:
            if question is not None:
                detail = "no answer follows the question"
                yield Rejection("question-without-answer", detail, "", number, question.units)
            question = speech if speech.role == "ask" else None
            if speech.role == "answer":
                detail = "no question comes before the answer"
                yield Rejection("answer-without-question", detail, "", number, speech.units)
            elif speech.speaker is None and speech.fault:
                yield Rejection("wrong-shape", speech.fault, "", number)
            elif not speech.role:
                detail = f"no speaker is known as {speech.speaker or ''!r}"
                yield Rejection("unknown-role", detail, "", number)


def _context(system: str, earlier: list[Exchange], options: Options) -> str:
    """The system message and the last `history` pairs that have text, one line a turn."""
    if not options.history:
        return ""
    lines = [system] if system else []
    earlier = [p for p in earlier if _has_text(p.instruction) and _has_text(p.response)]
    for pair in earlier[-options.history :]:
        lines += [f"사용자: {pair.instruction}", f"챗봇: {pair.response}"]
    return "\n".join(lines)


def _has_text(text: str) -> bool:
    return bool(zero_width(text).strip())


def _is_plain(turns: list[Turn], options: Options) -> bool:
    """The usual case: does an answer follow every question, and does no option change the pairs?"""
    if options.history or options.conversations or options.kovicuna_roles != "human-asks":
        return False
    return len(turns) % 2 == 0 and all(
        ask.speaker in HUMANS and answer.speaker in MODELS and not ask.context
        for ask, answer in zip(turns[::2], turns[1::2], strict=True)
    )


def drafts(record: Record, options: Options) -> Drafts:
    """One row a pair, or one a conversation; a rejection for every turn that is in no row."""
    id_ = record.id_text
    if record.conversations:
        items = _drafts(record.conversations, id_, conversation_id(id_), options)
    else:
        items = _drafts(
            record.messages or [], id_, id_, replace(options, kovicuna_roles="human-asks")
        )
    for item in items:
        if isinstance(item, Draft) and record.category is not None:
            set_category(item, record.category)
        yield item


def text_drafts(record: TextRecord, options: Options) -> Drafts:
    """The same for a text with marks."""
    turns, id_ = _marked_turns(record.text or ""), record.id_text
    return _drafts(turns, id_, id_, replace(options, kovicuna_roles="human-asks"))


def _drafts(turns: list[Turn], id_: str, conversation: str, options: Options) -> Drafts:
    if not turns:
        yield Rejection("no-turns", "the conversation has no turns", id_)
        return
    turns = _plain(turns)
    group = conversation or turns[0].value or ""
    if _is_plain(turns, options):
        for turn in range(0, len(turns), 2):
            ask, answer = turns[turn].value or "", turns[turn + 1].value or ""
            yield Draft(ask, "", answer, id=id_, turn=turn // 2, group=group, units=2)
        return
    messages = [turn.value or "" for turn in turns if _role(turn) == "system"]
    system, units = "\n".join(messages), len(messages)
    notes: tuple[str, ...] = ()
    if messages:
        turns = [turn for turn in turns if _role(turn) != "system"]
        group = conversation or (turns[0].value if turns else "") or ""
        if _has_text(system) and options.history:
            notes = ("system-turn",)
        elif not (_has_text(system) and options.conversations):
            detail = "a row has no place for it, or no text"
            yield Rejection("system-turn", detail, id_, units=units)
            system, units = "", 0
    mode = options.rules.get("same-role", all_rules()["same-role"].default)
    if mode != OFF and any(a == b != "" for a, b in pairwise(map(_role, turns))):
        notes += ("same-role",)
    earlier: list[Exchange] = []  # pairs before --kovicuna-roles swaps them
    rows: list[Exchange] = []
    for pair in _pairs(turns, mode):
        if isinstance(pair, Rejection):
            yield pair._replace(id=id_)
            continue
        context = "\n".join(filter(None, (_context(system, earlier, options), pair.context)))
        earlier.append(pair)
        if options.kovicuna_roles == "as-written":
            pair = pair._replace(instruction=pair.response, response=pair.instruction)
        rows.append(pair)
        if not options.conversations:
            yield Draft(
                pair.instruction, context, pair.response, id=id_, turn=pair.turn, group=group,
                units=pair.units + units, notes=notes,
            )  # fmt: skip
            units, notes = 0, ()
    if options.conversations and rows:
        last = rows[-1]
        yield Draft(
            last.instruction, last.context, last.response, id=id_, turn=last.turn, group=group, notes=notes,
            history=tuple(rows[:-1]), system=system, system_units=units,
            units=units + sum(row.units for row in rows),
        )  # fmt: skip
    elif units:
        yield Rejection("system-turn", "no row to go with the system message", id_, units=units)


def conversation_id(record_id: str) -> str:
    """The id of the whole conversation: the records of a long one are called `id_0`, `id_12`."""
    stem, _, piece = record_id.rpartition("_")
    return stem if stem and piece.isdecimal() else record_id


def looks_like(record: Mapping[str, Any]) -> bool:
    """A list of turns, each with its speaker, and with a text unless it is OpenAI's."""
    for key in ("conversations", "messages"):
        turns = record.get(key)
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            has_text = [{"value", "content", "text"} & turn.keys() for turn in turns]
            if all({"from", "role"} & turn.keys() for turn in turns):
                return key == "messages" or all(has_text)
    return False


def is_marked_text(record: Mapping[str, Any]) -> bool:
    """A text in which somebody asks."""
    text = record.get("text")
    return isinstance(text, str) and any(_role(turn) == "ask" for turn in _marked_turns(text))


LICENCE = Licence(
    "OpenAI terms of use; CC BY 2.0 KR",
    "https://creativecommons.org/licenses/by/2.0/kr/",
    commercial=False,
    derivatives=True,
    consequence="Its answers are ChatGPT's, whose terms forbid models that compete with OpenAI's: "
    "not for commercial use.",
)

DIALOGUES = Source(
    name="dialogues",
    title="Dialogues",
    record=Record,
    first_keys=frozenset({"id", "conversations", "messages"}),
    looks_like=looks_like,
    drafts=drafts,
    unit="turns",
    units=turn_count,
)
KOVICUNA = replace(
    DIALOGUES,
    name="kovicuna",
    title="KoVicuna",
    licence=LICENCE,
    patterns=("ko_dataset*.json", "ko_dataset*.jsonl"),
    by_name=True,
)
DIALOGUE_TEXTS = Source(
    name="dialogue-texts",
    title="Dialogues as texts",
    record=TextRecord,
    first_keys=frozenset({"text"}),
    looks_like=is_marked_text,
    drafts=text_drafts,
    unit="turns",
    units=turn_count,
)
