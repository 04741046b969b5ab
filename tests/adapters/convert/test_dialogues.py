"""Whole dialogues (`--conversations`): every pair is checked by itself, and what was rejected does not count as kept."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kodolly_adapters.convert.cleaning.clean import Cleaner, Verdict
from kodolly_adapters.convert.cleaning.rules import modes_of
from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.part import Part
from kodolly_adapters.convert.reading.records import Shard
from kodolly_adapters.convert.schema import Draft, Exchange
from kodolly_adapters.convert.shard import convert_shard
from kodolly_adapters.convert.sources.dialogues import KOVICUNA
from kodolly_templates.messages import read_dialogue

ENGLISH = "The sun is high and the sea is warm, and we are happy."
WHOLE = Options(conversations=True, validation=0)


def clean(draft: Draft, **modes: str) -> tuple[Verdict, Counter[str]]:
    by_rule = {name.replace("_", "-"): mode for name, mode in modes.items()}
    counts = Counter[str]()
    limits = Options(min_chars=2, max_chars=100)
    return Cleaner(modes_of(by_rule), limits).clean(draft, counts), counts


def talk(*answers: str, system: str = "", more: int = 0) -> Draft:
    """A dialogue of the questions 질문0, 질문1, ...; the first pair accounts for `more` turns on top."""
    *earlier, last = (
        Exchange(f"질문{turn}", answer, turn, 2 + (0 if turn else more))
        for turn, answer in enumerate(answers)
    )
    units = 2 * len(answers) + more + bool(system)
    return Draft(
        last.instruction, "", last.response, id="a", turn=last.turn, history=tuple(earlier),
        units=units, system=system, system_units=int(bool(system)),
    )  # fmt: skip


def answers_of(draft: Draft) -> list[str]:
    return [*(pair.response for pair in draft.history), draft.response]


def test_a_dialogue_is_cleaned_throughout() -> None:
    """Every pair and the system message are cleaned, and a fix counts once however often it fires."""
    draft = talk("가\r\n나", ": 다라", "마\r\n바", system=" 짧게. ")
    assert clean(draft) == ((True, []), {"newlines": 1, "leading-colon": 1, "outer-space": 1})
    assert answers_of(draft) == ["가\n나", "다라", "마\n바"]
    assert (draft.system, draft.units) == ("짧게.", 7)


BAD_PAIRS = [
    ("empty", " \u200b", {}),
    ("untranslated", ENGLISH, {"untranslated": "drop"}),
    ("too-short", "음", {"too_short": "drop"}),
    ("too-long", "긴 대답 " * 30, {"too_long": "drop"}),
    ("not-unicode", "글\ud83d", {}),
]


@pytest.mark.parametrize(
    ("reason", "answer", "modes"), BAD_PAIRS, ids=[case[0] for case in BAD_PAIRS]
)
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_a_bad_pair_leaves_the_dialogue(
    reason: str, answer: str, modes: dict[str, str], turn: int
) -> None:
    """Wherever it stands, only the bad pair is rejected, with its turns; the others stay one dialogue."""
    answers = ["첫째 대답", "둘째 대답", "셋째 대답"]
    good = [good for at, good in enumerate(answers) if at != turn]
    answers[turn] = answer
    draft = talk(*answers, more=3)
    (is_row, rejections), counts = clean(draft, **modes)
    assert is_row
    units = 2 if turn else 5
    assert [(one.reason, one.id, one.turn, one.units) for one in rejections] == [
        (reason, "a", turn, units)
    ]
    assert counts[reason] == 1
    assert answers_of(draft) == good
    assert draft.turn == (1 if turn == 2 else 2)
    assert draft.units == 9 - units


def test_a_dialogue_without_a_good_pair_is_no_row() -> None:
    """Each pair and the system message get a rejection, and together account for every turn."""
    draft = talk("", " ", system="짧게.")
    (is_row, rejections), counts = clean(draft)
    assert not is_row
    assert [one.reason for one in rejections] == ["empty", "empty", "system-turn"]
    assert sum(one.units for one in rejections) == 5
    assert (counts["empty"], counts["system-turn"]) == (2, 1)


@pytest.mark.parametrize(
    ("system", "reason"), [("\u200b", "system-turn"), ("글\ud83d", "not-unicode")]
)
def test_a_bad_system_message_leaves_the_dialogue(system: str, reason: str) -> None:
    """A system message that cleaning leaves nothing of, or that no file can hold, is rejected alone."""
    draft = talk("첫째 대답", "둘째 대답", system=system)
    (is_row, rejections), _ = clean(draft)
    assert is_row
    assert [(one.reason, one.units) for one in rejections] == [(reason, 1)]
    assert (draft.system, draft.units) == ("", 4)


def test_counting_counts_a_dialogue_once() -> None:
    """A rule that only counts keeps every pair and counts one row."""
    draft = talk("음", "응", "셋째 대답")
    assert clean(draft, too_short="count") == ((True, []), {"too-short": 1})
    assert len(draft.history) == 2


ANSWER = st.sampled_from(["대답입니다", "", "음", ENGLISH, "글\ud83d", "줄\r\n바꿈", "&amp;" * 3])


@given(st.lists(ANSWER, min_size=1, max_size=5), st.sampled_from(["", "짧게.", "\u200b"]))
def test_the_units_of_a_dialogue_are_kept_or_rejected(answers: list[str], system: str) -> None:
    """Whatever is rejected, units add up, and cleaning what is kept again changes nothing."""
    draft = talk(*answers, system=system, more=1)
    before = draft.units
    (is_row, rejections), _ = clean(draft, untranslated="drop", too_short="drop")
    assert sum(one.units for one in rejections) + (draft.units if is_row else 0) == before
    if is_row:
        once = (draft.history, draft.instruction, draft.response, draft.system, draft.units)
        assert clean(draft, untranslated="drop", too_short="drop")[0] == (True, [])
        again = (draft.history, draft.instruction, draft.response, draft.system, draft.units)
        assert again == once


def convert(*talks: list[tuple[str, str]], options: Options = WHOLE) -> Part:
    records = [
        {"id": f"a{number}", "conversations": [{"from": who, "value": text} for who, text in turns]}
        for number, turns in enumerate(talks)
    ]
    data = json.dumps(records, ensure_ascii=False).encode()[1:]
    shard = Shard(
        key="0000-0000000", file="ko_dataset.json", source="kovicuna", kind="array", header=(),
        offset=1, line=1, data=data, last=True, digest="0",
    )  # fmt: skip
    return convert_shard(shard, KOVICUNA, options)


def lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


WITH_SYSTEM = [
    ("system", "짧게."), ("human", "하나?"), ("gpt", "일이다."), ("human", "둘?"), ("gpt", " ")
]  # fmt: skip


def test_a_system_message_comes_first() -> None:
    """The row begins with the system message, is one a template can read, and lost only the empty pair."""
    part = convert(WITH_SYSTEM)
    (row,) = lines(part.rows)
    assert row["messages"] == [
        {"role": "system", "content": "짧게."},
        {"role": "user", "content": "하나?"},
        {"role": "assistant", "content": "일이다."},
    ]
    dialogue = read_dialogue(row["messages"])
    assert (dialogue.system, len(dialogue.turns)) == ("짧게.", 2)
    (rejection,) = lines(part.rejected)
    assert (rejection["reason"], rejection["turn"]) == ("empty", 1)
    counts = part.mark.counts
    assert (counts.units, counts.kept_units, counts.rejections) == (5, 3, {"empty": 2})


def test_a_system_message_without_a_place_is_no_kept_turn() -> None:
    """A row a pair has no place for it: it is a rejected line, and its text is in no row."""
    part = convert(WITH_SYSTEM, options=Options(validation=0))
    assert "짧게" not in part.rows.decode()
    assert part.mark.counts.rejections == {"system-turn": 1, "empty": 2}
    assert part.mark.counts.kept_units == 2


def test_lengths_are_those_of_all_messages() -> None:
    """The index sums questions, contexts (the system message) and answers of the whole dialogue."""
    part = convert([*WITH_SYSTEM[:3], ("human", "둘이야?"), ("gpt", "그렇지요.")])
    assert part.index["chars"].tolist() == [[3 + 4, 3, 4 + 5]]


def test_signatures_are_of_all_messages() -> None:
    """Dialogues that end alike but begin otherwise have other signatures; equal ones have the same."""
    end = [("human", "고마워"), ("gpt", "천만에요")]
    one = [("human", "서울은 어디에 있나요"), ("gpt", "한반도 가운데에 있습니다"), *end]
    other = [("human", "김치는 어떻게 담그나요"), ("gpt", "배추를 먼저 절입니다"), *end]
    options = Options(conversations=True, validation=0, rules={"near-duplicate": "count"})
    signatures = convert(one, other, one, options=options).signatures
    assert signatures is not None
    assert (signatures[0] == signatures[2]).all()
    assert (signatures[0] == signatures[1]).mean() < 0.8
