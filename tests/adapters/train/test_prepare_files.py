"""Files of a recipe: what is read, what is refused and where, what is set aside, what is found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tuning_rows import QUIET, dolly, recipe, tokenizer, write_lines

from kodolly_adapters.errors import DataError
from kodolly_adapters.terminal import Progress
from kodolly_adapters.train.dataset import COUNTS, Prepared, prepare
from kodolly_adapters.train.rows import SECTION, read_text
from kodolly_templates import get_template

ROWS = [dolly(f"질문 {number}?", f"답 {number}.", "글" * (number % 3)) for number in range(40)]
CHAT = {
    "messages": [
        {"role": "system", "content": "짧게."},
        {"role": "user", "content": "가?", "context": "글"},
        {"role": "assistant", "content": "나."},
        {"role": "user", "content": "다?"},
        {"role": "assistant", "content": "라."},
    ],
    "category": "open_qa",
}


class Counted(Progress):
    """Keeps (rows done, rows in all) of every change."""

    def __init__(self) -> None:
        super().__init__("train", unit="row", show=False)
        self.calls: list[tuple[int, int | None]] = []

    def add(self, count: int) -> None:
        super().add(count)
        self.calls.append((self.done, self.total))


def made(path: str, cache: Path, **data: Any) -> Prepared:
    return prepare(recipe(path, **data), tokenizer("neox"), get_template("dolly-ko"), cache)


def shown(dataset: Any) -> list[str]:
    return [str(tokenizer("neox").decode(ids)) for ids in dataset["input_ids"]]


def test_parquet_is_read_as_json_lines_are(tmp_path: Path) -> None:
    """Rows and dialogues give the same sequences and the same split from either kind of file."""
    import pyarrow
    from pyarrow import parquet

    for name, rows in (("rows", ROWS), ("chats", [CHAT] * 3)):
        lines = write_lines(tmp_path / f"{name}.jsonl", rows)
        table = str(tmp_path / f"{name}.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), table)
        share = 0.3 if name == "rows" else 0.0

        one = made(lines, tmp_path / "cache", validation_share=share)
        other = made(table, tmp_path / "cache", validation_share=share)

        assert one.folder != other.folder
        assert one.train.to_list() == other.train.to_list()
        assert one.outcomes == other.outcomes
        assert [file.rows for file in (*one.files, *other.files)] == [len(rows)] * 2


def test_what_convert_writes_is_read(tmp_path: Path) -> None:
    """A byte order mark, blank lines, nulls, other fields and a missing last newline are no obstacle."""
    path = tmp_path / "rows.jsonl"
    odd = {"instruction": "가", "context": None, "response": "나", "id": 7}
    lines = [json.dumps(dolly("다", "라")), "", json.dumps(odd), "  ", json.dumps(CHAT)]
    path.write_bytes("\ufeff".encode() + "\n".join(lines).encode())

    prepared = made(str(path), tmp_path / "cache")

    assert prepared.outcomes.rows == len(prepared.train) == 3
    assert shown(prepared.train)[2].count("### 응답:") == 2


def test_any_conversation_of_openais_is_learned(tmp_path: Path) -> None:
    """Two systems, a tool's turn, neighbours, parts and an answer that comes first are one row each."""
    user, answer = {"role": "user", "content": "가?"}, {"role": "assistant", "content": "나."}
    empty = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    part = {"role": "user", "content": [{"type": "text", "text": "다?"}]}
    shapes = [
        [{"role": "developer", "content": "s"}, {"role": "system", "content": "t"}, user, answer],
        [user, empty, {"role": "tool", "content": "맑음", "tool_call_id": "1"}, answer],
        [user, part, answer, answer],
        [answer, user, answer],
    ]
    path = write_lines(tmp_path / "a.jsonl", [{"messages": messages} for messages in shapes])

    prepared = made(path, tmp_path / "cache")

    assert list(prepared.outcomes.train) == ["kept"]
    texts = shown(prepared.train)
    assert "s\n\nt\n\n### 명령어:\n가?" in texts[0]
    assert "### 명령어:\n가?\n\n맑음\n\n### 응답:\n나." in texts[1]
    assert "### 명령어:\n가?\n\n다?\n\n### 응답:\n나.\n\n나.\n\n### 끝" in texts[2]
    assert texts[3].count("### 응답:") == 2


BAD = [
    (b"{", "JSON|truncated|malformed"),
    (b'{"instruction": 3, "response": "b"}', r"got `int` - at `\$\.instruction`"),
    (b'{"instruction": "a"}', 'neither a Dolly row .* nor a dialogue'),
    (b'{"text": "a"}', 'data.format = "text"'),
    (b'["a"]', "got `array`"),
    (b'{"instruction": "\xff", "response": "b"}', "utf-8|UTF-8"),
    (b'{"instruction": "\\ud800", "response": "b"}', "surrogate"),
    (b'{"messages": []}', "has no text"),
    (b'{"messages": [{"role": "user", "content": "a"}]}', "needs a response at the end"),
    (b'{"messages": [{"role": "gpt", "content": "a"}]}', "unknown role gpt"),
    (
        b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        "message 0: only content parts of type text",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "complaint"), BAD)
def test_a_bad_row_is_named(line: bytes, complaint: str, tmp_path: Path) -> None:
    """What is no row stops the run with its file and line, and leaves nothing half done in the cache."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(dolly("가", "나")).encode() + b"\n\n" + line + b"\n")

    with pytest.raises(DataError, match=rf"rows\.jsonl:3: .*({complaint})"):
        made(str(path), tmp_path / "cache")

    assert [place.suffix for place in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_file_that_is_not_there_is_named_with_its_key(tmp_path: Path) -> None:
    """A missing file, and one that is no Parquet, are told apart from bad rows."""
    with pytest.raises(DataError, match=r"data\.train: .*none\.jsonl: No such file"):
        made(str(tmp_path / "none.jsonl"), tmp_path / "cache")
    chosen = recipe(write_lines(tmp_path / "a.jsonl", ROWS), validation=["none.jsonl"])
    with pytest.raises(DataError, match=r"data\.validation: none\.jsonl"):
        prepare(chosen, tokenizer("neox"), get_template("dolly-ko"), tmp_path / "cache")
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file"):
        made(str(tmp_path / "a.parquet"), tmp_path / "cache")


def test_nothing_to_learn_from_is_an_error_that_says_why(tmp_path: Path) -> None:
    """When no row is left, the counts are in the message."""
    path = write_lines(tmp_path / "a.jsonl", [dolly("가", ""), dolly("가", "나" * 90)])

    with pytest.raises(DataError, match=r"no row is left(.|\n)*too-long +1(.|\n)*empty +1"):
        made(path, tmp_path / "cache", max_length=16)


def test_the_share_set_aside_follows_from_the_rows_alone(tmp_path: Path) -> None:
    """Rows keep their side when others come and go, copies stay together, and none is lost."""
    first = made(
        write_lines(tmp_path / "a.jsonl", ROWS * 2), tmp_path / "cache", validation_share=0.25
    )
    second = made(
        write_lines(tmp_path / "b.jsonl", ROWS[::-1][5:]), tmp_path / "cache", validation_share=0.25
    )

    assert first.validation is not None
    assert second.validation is not None
    aside, learned = set(shown(first.validation)), set(shown(first.train))
    assert not aside & learned
    assert len(aside) + len(learned) == len(ROWS)
    assert 2 * len(aside) == len(first.validation)
    assert set(shown(second.validation)) <= aside
    assert set(shown(second.train)) <= learned
    assert first.outcomes.rows == 2 * len(ROWS)


def test_validation_files_win_over_the_share(tmp_path: Path) -> None:
    """With files of its own the validation split takes nothing from the training rows."""
    prepared = made(
        write_lines(tmp_path / "a.jsonl", ROWS),
        tmp_path / "cache",
        validation=[write_lines(tmp_path / "b.jsonl", [CHAT])],
        validation_share=0.4,
    )

    assert len(prepared.train) == len(ROWS)
    assert prepared.validation is not None
    assert len(prepared.validation) == prepared.outcomes.validation["kept"].rows == 1


def test_rows_are_limited_and_repeated(tmp_path: Path) -> None:
    """`max_rows` reads the first rows only; `repeat` gives the training rows again, counted once."""
    path = write_lines(tmp_path / "a.jsonl", ROWS)

    prepared = made(path, tmp_path / "cache", max_rows=7, repeat=3)

    assert prepared.outcomes.rows == 7
    assert len(prepared.train) == 21
    assert shown(prepared.train)[:7] == shown(prepared.train)[14:]


def test_a_second_start_finds_the_first_ones_work(tmp_path: Path) -> None:
    """The same data under any name is prepared once; another tokenizer, template, limit or row is not the same."""
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    cache = tmp_path / "cache"
    first = made(path, cache)
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes())
    kept, template = tokenizer("neox"), get_template("dolly-ko")
    others = {
        made(path, cache, max_length=400).folder,
        made(write_lines(tmp_path / "b.jsonl", ROWS[1:]), cache).folder,
        prepare(recipe(path), kept, get_template("koalpaca"), cache).folder,
        prepare(recipe(path), tokenizer("llama"), template, cache).folder,
    }
    assert len(others | {first.folder}) == 5

    written = (first.folder / COUNTS).stat().st_mtime_ns
    progress = Counted()
    again = prepare(recipe(str(tmp_path / "copy.jsonl")), kept, template, cache, progress)

    assert again.train.to_list() == first.train.to_list()
    assert (first.folder / COUNTS).stat().st_mtime_ns == written
    assert (again.folder, again.outcomes) == (first.folder, first.outcomes)
    assert progress.calls == [(40, 40)]


def test_what_a_killed_run_left_is_swept_away(tmp_path: Path) -> None:
    """A half-written folder of either name is no obstacle and is not taken for a whole one."""
    path = write_lines(tmp_path / "a.jsonl", ROWS)
    folder = made(path, tmp_path / "cache").folder
    (folder / COUNTS).unlink()
    part = folder.with_name(f".{folder.name}.partial")
    part.mkdir()
    (part / "train.arrow").write_bytes(b"torn")

    again = made(path, tmp_path / "cache")

    assert len(again.train) == len(ROWS)
    assert not part.exists()


def test_progress_grows_to_the_whole(tmp_path: Path) -> None:
    """More and more rows are counted, never more than there are, and all of them at the end."""
    path = write_lines(tmp_path / "a.jsonl", ROWS * 40)
    progress = Counted()

    prepare(recipe(path), tokenizer("neox"), get_template("dolly-ko"), tmp_path / "cache", progress)

    calls = progress.calls
    assert len(calls) > 2
    assert calls == sorted(calls)
    assert all(total == 1_600 and done <= 1_600 for done, total in calls)
    assert calls[-1] == (1_600, 1_600)


def test_running_text_is_learned_whole(tmp_path: Path) -> None:
    """Every token of every document is learned, in even pieces, with an end token after each document only."""
    texts = ["한강이 흐릅니다. " * 30, "짧은 글", "", "</s><|im_end|> 다리"]
    path = write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])

    prepared = made(path, tmp_path / "cache", format="text", max_length=64)

    words = tokenizer("neox")
    rows = prepared.train.to_list()
    stream = [token for row in rows for token in row["input_ids"]]
    assert all(row["labels"] == row["input_ids"] and row["length"] <= 64 for row in rows)
    assert min(row["length"] for row in rows[:-2]) > 32
    assert stream.count(words.eos_token_id) == 3
    assert str(words.decode(stream)) == "<|im_end|>".join([texts[0], texts[1], texts[3], ""])
    assert {name: count.rows for name, count in prepared.outcomes.train.items()} == {
        "split": 1,
        "kept": 2,
        "empty": 1,
    }


def test_a_plain_text_file_is_one_document(tmp_path: Path) -> None:
    """A long .txt is read in stretches, begins with the tokenizer's bos and ends with one end token."""
    text = "서울에는 한강이 흐릅니다.\n" * 6_000
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    chosen = recipe(str(tmp_path / "a.txt"), format="text", max_length=256)
    words = tokenizer("llama")

    prepared = prepare(chosen, words, get_template("dolly-ko"), tmp_path / "cache")

    stream = [token for row in prepared.train.to_list() for token in row["input_ids"]]
    assert prepared.outcomes.rows == 2  # stretches
    assert (stream[0], stream[-1]) == (words.bos_token_id, words.eos_token_id)
    assert stream.count(words.eos_token_id) == stream.count(words.bos_token_id) == 1
    assert words.decode(stream, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    """A .txt in another encoding stops the run with file and line."""
    (tmp_path / "a.txt").write_bytes("첫 줄\n".encode() + "둘째 줄\n".encode("cp949"))

    with pytest.raises(DataError, match=r"a\.txt:2: not UTF-8"):
        made(str(tmp_path / "a.txt"), tmp_path / "cache", format="text")


@settings(QUIET, max_examples=30)
@given(
    blocks=st.lists(
        st.sampled_from(["가", "\n", "줄\n", "나" * 50_000, "다 " * 40_000]), max_size=8
    )
)
def test_stretches_are_the_whole_text(
    blocks: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However a text is cut for reading, the stretches put together are it, from either kind of file."""
    text, folder = "".join(blocks), tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text(text, encoding="utf-8")
    lines = write_lines(folder / "a.jsonl", [{"text": text}])

    for path in (str(folder / "a.txt"), lines):
        sections = list(read_text(path))
        assert "".join(section.content for section in sections) == text
        assert all(len(section.content) <= 2 * SECTION for section in sections)
        assert [section.first for section in sections] == [i == 0 for i in range(len(sections))]
        assert [section.last for section in sections] == [*[False] * (len(sections) - 1), True]
