"""The length policy: every row has one outcome, nothing is longer than allowed, no answer loses a token."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tuning_rows import (
    QUIET,
    Messages,
    dialogues,
    dolly,
    recipe,
    texts,
    tokenizer,
    write_lines,
)

from kodolly_adapters.train.dataset import OUTCOMES, Prepared, prepare
from kodolly_adapters.train.encode import GAP, IGNORED, Encoder, Fitter
from kodolly_templates import get_template

LONG = "서울에는 한강이 흐르고 다리가 여러 개 있습니다. "


def made(rows: list[Any], folder: Path, kind: str = "neox", **data: Any) -> Prepared:
    chosen = recipe(write_lines(folder / "rows.jsonl", rows), **data)
    return prepare(chosen, tokenizer(kind), get_template("koalpaca"), folder / "cache")


def answers(prepared: Prepared, row: int, kind: str = "neox") -> str:
    learned = [label for label in prepared.train[row]["labels"] if label != IGNORED]
    return str(tokenizer(kind).decode(learned))


def text(prepared: Prepared, row: int) -> str:
    return str(tokenizer("neox").decode(prepared.train[row]["input_ids"]))


long_rows = st.builds(
    dolly,
    texts,
    texts,
    st.tuples(texts, st.integers(0, 12)).map(lambda pair: pair[0] + LONG * pair[1]),
)
rows = st.lists(
    long_rows | dialogues(turns=5).map(lambda messages: {"messages": messages}),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("kind", ["neox", "llama"])
@settings(QUIET, max_examples=25)
@given(rows=rows, limit=st.integers(16, 300))
def test_outcomes_add_up(kind: str, rows: list[Any], limit: int) -> None:
    """Whatever the limit, the outcomes add up to the rows read, and every kept row fits and ends as an answer does."""
    sentinel = dolly("가", "나")  # always fits, so that something is left to learn from
    with tempfile.TemporaryDirectory() as name:
        prepared = made([*rows, sentinel], Path(name), kind, max_length=limit + 48)
        outcomes, made_rows = prepared.outcomes, prepared.train.to_list()

    counts = outcomes.train.values()
    assert outcomes.rows == sum(count.rows for count in counts) == len(rows) + 1
    assert set(outcomes.train) <= set(OUTCOMES)
    assert sum(count.sequences for count in counts) == len(made_rows)
    assert sum(count.kept for count in counts) == sum(row["length"] for row in made_rows)
    learned = sum(label != IGNORED for row in made_rows for label in row["labels"])
    assert sum(count.learned for count in counts) == learned
    for row in made_rows:
        assert len(row["input_ids"]) == len(row["labels"]) == row["length"] <= limit + 48
        assert row["labels"][-1] == row["input_ids"][-1] == tokenizer(kind).eos_token_id
        assert all(
            label in (IGNORED, token)
            for token, label in zip(row["input_ids"], row["labels"], strict=True)
        )


@settings(QUIET, max_examples=40)
@given(messages=dialogues(turns=4), limit=st.integers(24, 200), times=st.integers(1, 30))
def test_answers_that_stay_are_whole(messages: Messages, limit: int, times: int) -> None:
    """Of a row that is cut, the last answers stand unchanged and learned; a refused one could not fit."""
    encoder = Encoder(tokenizer("neox"), get_template("koalpaca"))
    messages = [
        {**one, "context": LONG * times} if one["role"] == "user" else one for one in messages
    ]
    whole = encoder.encode_dialogue(messages)

    outcome, left = Fitter(encoder, limit).fit(messages)

    if left is None:
        assert outcome == "too-long"
        system = [one for one in messages[:1] if one["role"] == "system"]
        bare = [*system, *({**one, "context": ""} for one in messages[-2:])]
        least = encoder.encode_dialogue(bare)
        assert len(least) > limit - limit // 8 - 16  # room for the least of a context, and its key
        return
    assert len(left) <= limit
    parts = [[tokens.ids[a:b] for a, b in tokens.learned] for tokens in (whole, left)]
    assert parts[0][-len(parts[1]) :] == parts[1]
    assert (len(parts[1]) == len(parts[0])) == (outcome == "context-cut" or len(parts[0]) == 1)


def test_a_context_is_cut_at_its_end_to_fill_the_room(tmp_path: Path) -> None:
    """The context keeps its beginning, cut before a character, and nearly all the tokens there is room for."""
    rows = [dolly("요약하세요.", "한강", LONG * 40 + "끝말")]

    prepared = made(rows, tmp_path, max_length=200)

    assert list(prepared.outcomes.train) == ["context-cut"]
    assert 190 <= prepared.train[0]["length"] <= 200
    shown = text(prepared, 0)
    assert shown.startswith("### 질문: 요약하세요.\n\n### 맥락: 서울에는 한강이")
    assert "끝말" not in shown
    assert "\ufffd" not in shown
    assert answers(prepared, 0).startswith(" 한강")


def test_a_cut_never_splits_a_character(tmp_path: Path) -> None:
    """Characters of several tokens each are kept whole or not at all, wherever the limit falls."""
    rows = [dolly("뜻?", "답", "👩‍👩‍👧‍👦뷁쀍" * 60)]

    for limit in range(100, 130):
        folder = tmp_path / str(limit)
        folder.mkdir()
        assert "\ufffd" not in text(made(rows, folder, max_length=limit), 0)


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    messages: Messages = [{"role": "system", "content": "짧게."}]
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages}


def test_the_oldest_exchanges_go_first(tmp_path: Path) -> None:
    """Of a long dialogue as many of the last exchanges stay as fit, after the system message."""
    rows = [chat(*((f"질문{turn}?", f"답{turn}. " + LONG) for turn in range(12)))]

    prepared = made(rows, tmp_path, max_length=200)

    assert list(prepared.outcomes.train) == ["turns-dropped"]
    shown = text(prepared, 0)
    assert shown.startswith("짧게.\n\n### 질문: ")
    kept = [turn for turn in range(12) if f"질문{turn}?" in shown]
    assert kept == list(range(12 - len(kept), 12))
    assert 1 < len(kept) < 12
    assert prepared.train[0]["length"] > 200 - 200 // len(kept)  # one more would not have fitted
    assert answers(prepared, 0).count("답") == len(kept)


def test_an_instruction_loses_its_middle(tmp_path: Path) -> None:
    """A pasted text in a question is cut in its middle, so that what is asked before or after it stays."""
    rows = [dolly("다음 글을 요약하세요. " + LONG * 40 + "한 줄로 쓰세요.", "한강 이야기")]

    prepared = made(rows, tmp_path, max_length=160)

    assert list(prepared.outcomes.train) == ["instruction-cut"]
    shown = text(prepared, 0)
    assert shown.startswith("### 질문: 다음 글을 요약하세요. 서울에는")
    assert "한 줄로 쓰세요.\n\n### 답변: 한강 이야기" in shown
    assert GAP.strip() in shown


def test_an_answer_is_never_cut(tmp_path: Path) -> None:
    """A row whose answer alone does not fit is refused and counted, with the tokens it had."""
    rows = [dolly("가", LONG * 40), dolly("", "답"), dolly("가", " \n"), dolly("가", "나")]

    prepared = made(rows, tmp_path, max_length=128)

    counts = {name: count.rows for name, count in prepared.outcomes.train.items()}
    assert counts == {"too-long": 1, "empty": 2, "kept": 1}
    assert prepared.outcomes.train["too-long"].tokens > 128
    assert prepared.outcomes.train["too-long"].kept == 0
    assert len(prepared.train) == 1


def test_the_table_has_every_outcome(tmp_path: Path) -> None:
    """People read one line an outcome: rows, tokens before, after and learned, and what it means."""
    table = made([dolly("가", "나"), dolly("", "답")], tmp_path).outcomes.table().splitlines()

    assert [line.split()[:3] for line in table[1:]] == [
        ["train", "kept", "1"],
        ["train", "empty", "1"],
    ]
    assert table[2].endswith("a question or an answer without text")
