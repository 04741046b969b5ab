"""KoVicuna: ShareGPT conversations in Korean (`ko_dataset*.json`).

A record is {"id", "conversations": [{"from", "value"}]}. The study's table says "gpt -> instruction, human ->
response"; its own sample shows the human asking, so here the human asks unless `kovicuna_roles` says
`as-written`. A row is one question and its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from ..cleaning.fixes import zero_width
from ..cleaning.rules import COUNT, DROP, JOIN, all_rules
from ..options import Options
from ..reading.source import Drafts, Licence, Source
from ..schema import Draft, Exchange, Refusal

ASKS = frozenset({"human", "user"})
ANSWERS = frozenset({"gpt", "chatgpt", "assistant", "bing", "bard"})
_ROLES = dict.fromkeys(ASKS, "ask") | dict.fromkeys(ANSWERS, "answer") | {"system": "system"}


class Turn(msgspec.Struct, gc=False):
    """One utterance."""

    speaker: str | None = msgspec.field(name="from", default=None)
    value: str | None = None


class Record(msgspec.Struct, gc=False):
    """One conversation."""

    id: str | int | None = None
    conversations: list[Turn] | None = None


class Speech(NamedTuple):
    """What one speaker says at once: `units` turns of the record."""

    role: str  # "ask", "answer", or "" for an unknown speaker
    text: str
    units: int
    speaker: str


class Pair(NamedTuple):
    """A question and its answer."""

    question: str
    answer: str
    units: int


def turns(record: Record) -> int:
    """How many turns the record holds: what its drafts' and refusals' units add up to."""
    return len(record.conversations or ())


def _role(turn: Turn) -> str:
    speaker = turn.speaker or ""
    return _ROLES.get(speaker) or _ROLES.get(speaker.strip().lower(), "")


def _speeches(spoken: list[Turn], mode: str) -> Iterator[Speech | Refusal]:
    """The turns, those of one speaker in a row treated as rule same-role says."""
    last: Speech | None = None
    for turn in spoken:
        role, text = _role(turn), turn.value or ""
        if last is None or not role or role != last.role or mode not in (JOIN, DROP):
            if last is not None:
                yield last
            last = Speech(role, text, 1, turn.speaker or "")
        elif mode == JOIN:
            last = last._replace(text=f"{last.text}\n{text}", units=last.units + 1)
        else:
            yield Refusal("same-role", f"{turn.speaker} speaks again: only the first turn is kept")
    if last is not None:
        yield last


def _repeats(spoken: list[Turn]) -> bool:
    """Does a speaker have two turns in a row?"""
    roles = [_role(turn) for turn in spoken]
    return any(a == b != "" for a, b in pairwise(roles))


def _unanswered(speech: Speech) -> Refusal:
    return Refusal("question-without-answer", "no answer follows the question", units=speech.units)


def _pairs(speeches: Iterator[Speech | Refusal]) -> Iterator[Pair | Refusal]:
    """Each question with the answer right after it; every other speech is refused."""
    question: Speech | None = None
    for speech in speeches:
        if isinstance(speech, Refusal):
            yield speech
        elif speech.role == "answer" and question is not None:
            yield Pair(question.text, speech.text, question.units + speech.units)
            question = None
        else:
            if question is not None:
                yield _unanswered(question)
            question = speech if speech.role == "ask" else None
            if speech.role == "answer":
                detail = "no question comes before the answer"
                yield Refusal("answer-without-question", detail, units=speech.units)
            elif not speech.role:
                yield Refusal("unknown-role", f"no speaker is known as {speech.speaker!r}")
    if question is not None:
        yield _unanswered(question)


def _context(system: str, earlier: list[Pair], options: Options) -> str:
    """The last `history` pairs that say something as lines, after the system message."""
    if not options.history:
        return ""
    lines = [system] if system else []
    earlier = [pair for pair in earlier if _says(pair.question) and _says(pair.answer)]
    for pair in earlier[-options.history :]:
        lines += [f"사용자: {pair.question}", f"챗봇: {pair.answer}"]
    return "\n".join(lines)


def _says(text: str) -> bool:
    return bool(zero_width(text).strip())


def _sides(pair: Pair, options: Options) -> tuple[str, str]:
    """Instruction and response."""
    if options.kovicuna_roles == "as-written":
        return pair.answer, pair.question
    return pair.question, pair.answer


def drafts(record: Record, options: Options) -> Drafts:
    """One row a pair, or one a conversation; a refusal for every turn that is in none."""
    name = "" if record.id is None else str(record.id)
    spoken = record.conversations or []
    if not spoken:
        yield Refusal("no-turns", "the conversation has no turns", name, units=0)
        return
    if _is_plain(spoken, options):
        group = conversation(name) or spoken[0].value or ""
        for turn in range(0, len(spoken), 2):
            ask, answer = spoken[turn].value or "", spoken[turn + 1].value or ""
            yield Draft(ask, "", answer, id=name, turn=turn // 2, group=group, units=2)
        return
    system = [turn for turn in spoken if _role(turn) == "system"]
    notes: list[str] = []
    head, units = "\n".join(turn.value or "" for turn in system), len(system)
    if system:
        spoken = [turn for turn in spoken if _role(turn) != "system"]
        if _says(head) and options.history:
            notes.append("system-turn")
        elif not (_says(head) and options.conversations):
            yield Refusal("system-turn", "a row has no place for it, or no text", name, units=units)
            head, units = "", 0
    mode = options.rules.get("same-role", all_rules()["same-role"].default)
    if mode in (COUNT, JOIN, DROP) and _repeats(spoken):
        notes.append("same-role")
    yield from _rows(name, spoken, mode, options, head, units, tuple(notes))


def _is_plain(spoken: list[Turn], options: Options) -> bool:
    """Do questions and answers simply take turns, as nearly everywhere, and is nothing special asked for?"""
    if options.history or options.conversations or options.kovicuna_roles != "human-asks":
        return False
    return len(spoken) % 2 == 0 and all(
        ask.speaker in ASKS and answer.speaker in ANSWERS
        for ask, answer in zip(spoken[::2], spoken[1::2], strict=True)
    )


def _rows(
    name: str,
    spoken: list[Turn],
    mode: str,
    options: Options,
    system: str,
    units: int,
    notes: tuple[str, ...],
) -> Drafts:
    """The drafts; the first also accounts for the `units` system turns and carries the notes."""
    first = spoken[0].value if spoken else None
    group = conversation(name) or first or ""
    pairs: list[Pair] = []
    for pair in _pairs(_speeches(spoken, mode)):
        if isinstance(pair, Refusal):
            yield pair._replace(id=name, turn=len(pairs))
            continue
        if not options.conversations:
            ask, answer = _sides(pair, options)
            context, turn = _context(system, pairs, options), len(pairs)
            yield Draft(
                ask, context, answer, id=name, turn=turn, group=group,
                units=pair.units + units, notes=notes,
            )  # fmt: skip
            units, notes = 0, ()
        pairs.append(pair)
    if options.conversations and pairs:
        *earlier, last = (
            Exchange(*_sides(pair, options), turn, pair.units) for turn, pair in enumerate(pairs)
        )
        total = units + sum(pair.units for pair in pairs)
        yield Draft(
            last.instruction, "", last.response, id=name, turn=last.turn, group=group,
            history=tuple(earlier), system=system, system_units=units, units=total, notes=notes,
        )  # fmt: skip
        units = 0
    if units:
        yield Refusal("system-turn", "no row to go with the system message", name, units=units)


def conversation(name: str) -> str:
    """The whole conversation's name: long ones are cut in pieces `name_0`, `name_12`."""
    stem, _, piece = name.rpartition("_")
    return stem if stem and piece.isdecimal() else name


def looks_like(record: Mapping[str, Any]) -> bool:
    """A list of turns, each with from and value."""
    spoken = record.get("conversations")
    if not isinstance(spoken, list):
        return False
    return all(isinstance(turn, dict) and "from" in turn and "value" in turn for turn in spoken)


LICENCE = Licence(
    "OpenAI terms of use; CC BY 2.0 KR",
    "https://creativecommons.org/licenses/by/2.0/kr/",
    commercial=False,
    derivatives=True,
    consequence="Its answers are ChatGPT's, whose terms forbid models that compete with OpenAI's: "
    "not for commercial use.",
)

KOVICUNA = Source(
    name="kovicuna",
    title="KoVicuna",
    licence=LICENCE,
    record=Record,
    first_keys=frozenset({"id", "conversations"}),
    looks_like=looks_like,
    drafts=drafts,
    patterns=("ko_dataset*.json",),
    unit="turns",
    units=turns,
)
