"""The table of shapes: each is recognised and becomes its rows, whatever its texts; --map names other columns."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.convert_files import read_lines, write_json, write_lines

from kodolly_adapters.convert import cli
from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.reading import plan
from kodolly_adapters.convert.reading.inputs import Stream
from kodolly_adapters.convert.reading.layouts import layout_of
from kodolly_adapters.convert.reading.plan import cut, recognise
from kodolly_adapters.convert.reading.records import decode
from kodolly_adapters.convert.reading.source import Source
from kodolly_adapters.convert.run import convert
from kodolly_adapters.convert.schema import Draft, Rejection
from kodolly_adapters.convert.sources import SOURCES
from kodolly_adapters.convert.sources.dialogues import DIALOGUES
from kodolly_adapters.convert.sources.shapes import FIELDS, mapped_source
from kodolly_adapters.errors import OptionError

pytestmark = pytest.mark.usefixtures("no_pictures")

DOCS = Path(__file__).resolve().parents[3] / "docs" / "convert.md"
SHAPES = [source for source in SOURCES if source.columns and not source.by_name]
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=30)


def read(data: bytes, file: str = "rows") -> tuple[str, list[Draft | Rejection]]:
    """The source that the file's bytes are recognised as, and what its records become."""
    layout = layout_of(data)
    assert layout is not None
    source = recognise(file, layout, SOURCES)
    assert source is not None
    stream = Stream(file, io.BytesIO(data), lambda size: None)
    shards = cut(stream, layout, source, file, "0")
    records = [record for shard in shards for record in decode(shard, source)]
    return source.name, [one for record in records for one in source.drafts(record, Options())]


@st.composite
def records(draw: st.DrawFn) -> tuple[Source, dict[str, str], dict[str, str]]:
    """A shape, the fields of a row, and a record of that shape that holds them."""
    source = draw(st.sampled_from(SHAPES))
    names = {
        field: draw(st.sampled_from(list(some))) for field, some in (source.columns or {}).items()
    }
    row = {field: draw(TEXTS) for field in names}
    if "category" in row:
        row["category"] = draw(st.sampled_from(["open_qa", "brainstorming"]))
    return source, row, {names[field]: text for field, text in row.items()}


@given(records(), st.booleans())
def test_every_shape_gives_its_texts_back(
    drawn: tuple[Source, dict[str, str], dict[str, str]], is_table: bool
) -> None:
    """A record of any shape, with any of its columns' names, as JSON or as CSV, is the row it was made from."""
    source, row, record = drawn
    if is_table:
        file = io.StringIO()
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([record, record.values(), record.values()])
        data = file.getvalue().encode()
    else:
        data = json.dumps([record] * 2, ensure_ascii=False).encode()
    expected = msgspec.convert({"context": "", **row}, Draft)
    assert read(data) == (source.name, [expected] * 2)


TURNS = [("user", "하나?"), ("assistant", "일."), ("user", "둘?"), ("assistant", "이.")]
PAIRS = [("하나?", "일."), ("둘?", "이.")]


@pytest.mark.parametrize("key", ["conversations", "messages"])
@pytest.mark.parametrize("speaker", ["from", "role"])
@pytest.mark.parametrize("text", ["value", "content", "text"])
def test_a_dialogue_may_use_other_names(key: str, speaker: str, text: str) -> None:
    """ShareGPT's and OpenAI's keys, and any mix of them, are the same dialogue."""
    record = {"id": "t1", key: [{speaker: who, text: words} for who, words in TURNS]}
    name, drafts = read(json.dumps([record, record], ensure_ascii=False).encode())
    assert name == "dialogues"
    assert [
        (one.instruction, one.response) for one in drafts if isinstance(one, Draft)
    ] == PAIRS * 2


@pytest.mark.parametrize(
    "text",
    [
        "<human>: 하나?\n<bot>: 일.\n<human>: 둘?\n<bot>: 이.",
        "<usr> 하나?\n<bot> 일.\n<usr> 둘?\n<bot> 이.",
        "### Human: 하나?### Assistant: 일.### Human: 둘?### Assistant: 이.",
        "### 질문: 하나?\n\n### 답변: 일.\n\n### 질문: 둘?\n\n### 답변: 이.",
    ],
)
def test_a_dialogue_may_be_a_text_with_marks(text: str) -> None:
    """The marks of OIG, open-korean-instructions, Guanaco and KoAlpaca's prompt part the turns."""
    name, drafts = read(json.dumps({"text": text, "metadata": {"source": "x"}}).encode() + b"\n")
    assert name == "dialogue-texts"
    assert [(one.instruction, one.response) for one in drafts if isinstance(one, Draft)] == PAIRS


def test_text_before_the_first_mark_is_a_system_message() -> None:
    """What stands before the first question is counted and no part of a question."""
    _, drafts = read(json.dumps({"text": "배경이다.\n<human>: 왜?\n<bot>: 그냥."}).encode() + b"\n")
    assert [getattr(one, "reason", "") for one in drafts] == ["system-turn", ""]


def messages(*turns: dict[str, Any]) -> list[Draft | Rejection]:
    return read(json.dumps({"messages": turns}, ensure_ascii=False).encode() + b"\n")[1]


def test_parts_of_text_are_read_and_pictures_refused() -> None:
    """OpenAI's content parts are joined; a turn with a picture is refused alone, and what tools say too."""
    parts = [{"type": "text", "text": "왜"}, {"type": "text", "text": "그래?"}]
    answer = {"role": "assistant", "content": "그냥."}
    (row,) = messages({"role": "user", "content": parts}, answer)
    assert isinstance(row, Draft)
    assert row.instruction == "왜\n그래?"
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    call: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": []}
    result = {"role": "tool", "content": "3"}
    drafts = messages(picture, answer, {"role": "user", "content": "합은?"}, call, result, answer)
    reasons = [one.reason if isinstance(one, Rejection) else "row" for one in drafts]
    assert reasons == [
        "wrong-shape", "answer-without-question", "row", "unknown-role", "answer-without-question"
    ]  # fmt: skip


def test_what_we_write_we_read(tmp_path: Path) -> None:
    """The file of --conversations gives its dialogues back, with system messages, contexts and categories."""
    context = "한강은 서울을 지난다. " * 3
    row = {
        "messages": [
            {"role": "system", "content": "짧게 답한다."},
            {"role": "user", "content": "무슨 강이 지나나요?", "context": context.strip()},
            {"role": "assistant", "content": "한강이 지납니다."},
            {"role": "user", "content": "다른 강은요?"},
            {"role": "assistant", "content": "없습니다."},
        ],
        "category": "closed_qa",
    }
    write_lines(tmp_path / "train.jsonl", [row])
    options = Options(conversations=True, validation=0.0)
    convert([str(tmp_path / "train.jsonl")], tmp_path / "out", options, jobs=1)
    assert read_lines(tmp_path / "out" / "train.jsonl") == [row]
    convert([str(tmp_path / "train.jsonl")], tmp_path / "rows", Options(validation=0.0), jobs=1)
    rows = read_lines(tmp_path / "rows" / "train.jsonl")
    assert [(one["context"], one["category"]) for one in rows] == [
        (context.strip(), "closed_qa"), ("", "closed_qa")
    ]  # fmt: skip


def test_the_studys_swapped_roles_are_those_of_sharegpt_alone() -> None:
    """--kovicuna-roles as-written does not turn OpenAI's roles round, which are no question of reading."""
    turns = [{"role": "user", "content": "왜?"}, {"role": "assistant", "content": "그냥."}]
    for key, swapped in (("conversations", True), ("messages", False)):
        record = msgspec.convert({key: turns}, DIALOGUES.record)
        (row,) = DIALOGUES.drafts(record, Options(kovicuna_roles="as-written"))
        assert isinstance(row, Draft)
        assert (row.instruction == "그냥.") is swapped


HUB = {"id": "1", "title": "서울", "context": "서울은 수도이다.", "question": "수도는?"}
ARTICLE = {"doc_title": "서울", "doc_class": {"code": "b"}}


@pytest.mark.parametrize(
    ("document", "name"),
    [
        ([HUB | {"answers": {"text": ["서울"], "answer_start": [0]}}], "squad-flat"),
        ([HUB | {"answers": [{"text": "서울", "answer_start": 0}]}], "squad-flat"),
        ([HUB | {"answer": {"text": "서울", "answer_start": 0}}], "squad-flat"),
        (
            {
                "Dataset": {"identifier": "X", "src": {"path": "{\"}"}},
                "data": [
                    ARTICLE | {"paragraphs": [{"context_id": "1", "context": HUB["context"], "qas": [
                        {"question_id": "1", "question": "수도는?", "is_impossible": False,
                         "answers": {"text": "서울", "answer_start": 0, "options": None}}]}]}
                ],
            },
            "squad",
        ),
    ],
)  # fmt: skip
def test_questions_about_paragraphs_in_other_dress(document: Any, name: str) -> None:
    """The hub's flat form and AI-Hub's wrapped one give the row of the nested form."""
    source, drafts = read(json.dumps(document, ensure_ascii=False).encode())
    group = "서울"
    assert source == name
    assert drafts == [Draft("수도는?", "서울은 수도이다.", "서울", id="1", group=group)]


@pytest.mark.parametrize("key", ["id", "번호", "url"])
def test_records_in_an_array_are_told_apart_by_any_first_key(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the records begin with a column of the set's own, a large array is still cut between records."""
    records = [{key: "1", "질문": f"{n}?", "답변": "네." * 9} for n in range(90)]
    file = write_json(tmp_path / "rows.json", records)
    monkeypatch.setattr(plan, "SHARD", 500)  # bytes
    shards = [shard for shard, _ in plan.Plan([str(file)], SOURCES).shards()]
    assert len(shards) > 3
    summary = convert([str(file)], tmp_path / "out", Options(), jobs=1)
    assert summary.inputs[0].counts.rows == 90


@pytest.mark.parametrize(
    ("answer", "reason"),
    [({}, "no-output"), ([], "no-output"), (None, "no-output"), ({"주제": "봄"}, ""), (["봄"], "")],
)
def test_an_answer_that_is_no_text_is_json(answer: Any, reason: str) -> None:
    """An object or list is kept as JSON and noted; an empty one is no answer."""
    _, (one,) = read(json.dumps([{"instruction": "왜?", "output": answer}]).encode())
    assert getattr(one, "reason", "") == reason
    if isinstance(one, Draft):
        assert (json.loads(one.response), one.notes) == (answer, ("json-answer",))


@pytest.mark.parametrize("field", ["instruction", "input"])
def test_a_question_that_is_no_text_is_rejected_alone(field: str) -> None:
    """A number where a text belongs costs its own record and is named."""
    good = {"instruction": "왜?", "input": "", "output": "그냥."}
    _, (first, second) = read(json.dumps([good | {field: 7}, good]).encode())
    assert isinstance(first, Rejection)
    assert (first.reason, field in first.detail) == ("wrong-shape", True)
    assert isinstance(second, Draft)


def test_columns_are_named_by_hand(tmp_path: Path) -> None:
    """--map makes rows of columns nobody foresaw, also of names with a comma; the card repeats the flag."""
    file = tmp_path / "own.csv"
    file.write_text('번호,"물음, 처음",풀이\n1,왜요?,그냥요.\n', encoding="utf-8")
    flags = ["--map", "instruction=물음, 처음,response=풀이", "--map", "id=번호", "--jobs", "1"]
    assert cli.main([str(file), "--out", str(tmp_path / "out"), *flags]) == 0
    (row,) = [
        r for name in ("train", "validation") for r in read_lines(tmp_path / f"out/{name}.jsonl")
    ]
    assert (row["instruction"], row["response"]) == ("왜요?", "그냥요.")
    card = (tmp_path / "out" / "dataset_card.md").read_text(encoding="utf-8")
    assert "--map 'instruction=물음, 처음'" in card


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["answer=풀이"], "FIELD one of instruction, context, response, category, id; not answer="),
        (["instruction"], "write FIELD=COLUMN"),
        (["instruction=물음"], "which column is the response"),
        (["instruction=물음,instruction=풀이"], "instruction is set twice"),
    ],
)
def test_a_wrong_map_is_an_error(flags: list[str], message: str) -> None:
    """An unknown field, one without a column, one left out and one given twice are each named."""
    with pytest.raises(OptionError, match=message):
        mapped_source(flags)


@pytest.mark.parametrize("name", ["own.csv", "own.jsonl"])
def test_a_column_that_is_not_there_is_named(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the missing column and those that the file has."""
    record = {"물음": "왜?", "풀이": "그냥."}
    rows = [",".join(record), ",".join(record.values())]
    lines = rows if name.endswith("csv") else [json.dumps(record, ensure_ascii=False)]
    (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = ["--map", "instruction=질문,response=풀이", "--jobs", "1"]
    assert cli.main([str(tmp_path / name), "--out", str(tmp_path / "out"), *flags]) == 1
    assert f"{name}: has no column 질문; its columns are 물음, 풀이" in capsys.readouterr().err


def rows_of_the_documents_table() -> Iterator[list[str]]:
    section = DOCS.read_text(encoding="utf-8").partition("### Shapes")[2].partition("\n#")[0]
    for line in re.findall(r"^\| `.*$", section, re.MULTILINE):
        yield [cell.strip() for cell in line.strip("| ").split(" | ")]


def test_the_documents_table_is_the_declared_one() -> None:
    """docs/convert.md lists every shape with exactly its columns."""
    declared = [
        [f"`{source.name}`", *(
            ", ".join(f"`{name}`" for name in (source.columns or {}).get(field, ())) or "-"
            for field in FIELDS[:3]
        )]
        for source in SHAPES
    ]  # fmt: skip
    assert list(rows_of_the_documents_table()) == declared
