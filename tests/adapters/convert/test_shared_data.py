"""Real files converted whole, against readings of them that share no code with the converter."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.convert_files import read_lines
from support.shared_data import SHARED_DATA, needs_shared_data

from kodolly_adapters.convert.cleaning.rules import OFF, all_rules
from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.output.summary import Summary
from kodolly_adapters.convert.run import convert

pytestmark = needs_shared_data
AS_IT_IS = {
    rule.name: OFF for rule in all_rules().values() if OFF in rule.modes
}  # no text is touched

Read = tuple[str, str, str, str]  # source, instruction, context, response


def load(name: str) -> Any:
    return json.loads((SHARED_DATA / name).read_bytes())


def alpaca(folder: str, source: str) -> Iterator[Read]:
    for file in sorted((SHARED_DATA / folder).glob("*alpaca*.json")):
        for record in json.loads(file.read_bytes()):
            yield source, record["instruction"], record["input"], record["output"]


def korquad1() -> Iterator[Read]:
    paragraphs = []
    for file in sorted((SHARED_DATA / "korquad1").glob("*.json")):
        data = json.loads(file.read_bytes())["data"]
        paragraphs += [paragraph for article in data for paragraph in article["paragraphs"]]
    for paragraph in paragraphs:
        for qa in paragraph["qas"]:
            yield "korquad1", qa["question"], paragraph["context"], qa["answers"][0]["text"]


def chatbot() -> Iterator[Read]:
    path = SHARED_DATA / "chatbot_data" / "ChatbotData.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        for question, answer, _ in list(csv.reader(stream))[1:]:
            yield "chatbot-data", question, "", answer


def hrc() -> Iterator[Read]:
    names = {"질의": "상담례, 결정례 기반 답변", "상담 내용": "답변"}
    for file in sorted((SHARED_DATA / "hrc").glob("*.json")):
        for line in file.read_text(encoding="utf-8").split("\n"):
            if line.strip():
                record = json.loads(line)
                key = next(key for key in names if key in record)
                answers = [record[k] for k in record if "답변" in k and "ChatGPT" not in k]
                yield "hrc", record[key], "", answers[0]


def kovicuna() -> Iterator[Read]:
    for conversation in load("seed_samples/kovicuna_QWJhYvA_0.json"):
        turns = [turn["value"] for turn in conversation["conversations"]]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            yield "dialogues", question, "", answer


def korquad2() -> Iterator[Read]:
    for file in sorted((SHARED_DATA / "korquad2").glob("*.json")):
        for page in json.loads(file.read_bytes())["data"]:
            for qa in page["qas"]:
                yield "korquad2", qa["question"], page["context"], qa["answer"]["text"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole folder converted with every switchable rule off and the study's literal contexts."""
    folder = tmp_path_factory.mktemp("shared") / "out"
    options = Options(
        rules=AS_IT_IS, korquad2_context="html", provenance=True, validation=0.0, splits="hash"
    )
    convert([str(SHARED_DATA)], folder, options, jobs=1)
    return folder


@pytest.fixture(scope="module")
def summary(out: Path) -> Summary:
    return msgspec.json.decode((out / "convert.json").read_bytes(), type=Summary)


def readings() -> dict[str, list[Read]]:
    every = [
        *alpaca("koalpaca", "koalpaca"),
        *alpaca("seed_samples", "alpaca"),
        *korquad1(),
        *chatbot(),
        *hrc(),
    ]
    every += [*kovicuna(), *korquad2()]
    by_source: dict[str, list[Read]] = {}
    for one in every:
        by_source.setdefault(one[0], []).append(one)
    return by_source


def test_every_record_is_a_row_or_rejected_with_a_reason(summary: Summary) -> None:
    """The counts of each source are those of the independent reading; a missing text is the only loss."""
    counts = {source.name: source.counts for source in summary.sources}
    read = readings()
    questions = (SHARED_DATA / "korquad2" / "korquad2.1_dev_qa.from_yml.jsonl").read_bytes()
    assert counts["korquad2-questions"].units == questions.count(b"\n")
    assert counts["dialogues"].units == 2 * len(read["dialogues"])
    for name, rows in read.items():
        empty = sum(not one[1].strip() or not one[3].strip() for one in rows)
        assert counts[name].rows == len(rows) - empty
        assert counts[name].rejections.get("empty", 0) == empty
    assert summary.faults() == []


@pytest.mark.parametrize(
    "source", ["koalpaca", "alpaca", "korquad1", "chatbot-data", "hrc", "dialogues", "korquad2"]
)
def test_ten_rows_of_each_source_field_by_field(out: Path, source: str) -> None:
    """With the rules off, rows drawn by hash are what the raw file says, in its order."""
    rows = read_lines(out / "train.jsonl")
    origins = read_lines(out / "train.provenance.jsonl")
    source_rows = [row for row, one in zip(rows, origins, strict=True) if one["source"] == source]
    read = [one for one in readings()[source] if one[1].strip() and one[3].strip()]
    assert len(source_rows) == len(read)
    sample = sorted(
        range(len(source_rows)), key=lambda n: hashlib.sha256(str(n).encode()).digest()
    )[:10]
    assert len(sample) == min(10, len(source_rows))
    for number in sample:
        row, (_, instruction, context, response) = source_rows[number], read[number]
        assert row == {
            "instruction": instruction,
            "context": context,
            "response": response,
            "category": "open_qa",
        }


def test_files_that_are_no_data_are_listed(summary: Summary) -> None:
    """READMEs, licences and prose are passed over by name, and nothing else is."""
    assert all(one.name.endswith((".md", ".txt", "LICENSE")) for one in summary.skipped)
    assert len(summary.inputs) + len(summary.skipped) == sum(
        path.is_file() for path in SHARED_DATA.rglob("*")
    )


def test_cleaned_windows_still_hold_their_answers(tmp_path: Path) -> None:
    """With all defaults on, the answer of every question with a context stands in that context."""
    folders = [str(SHARED_DATA / name) for name in ("korquad1", "korquad2")]
    convert(folders, tmp_path / "out", Options(validation=0.0), jobs=1)
    rows = [row for row in read_lines(tmp_path / "out" / "train.jsonl") if row["context"]]
    assert len(rows) == 3581 + 3
    assert [row for row in rows if row["response"] not in row["context"]] == []


def counted_units(file: Path) -> int:
    """Turns, questions or records of one file, by Python's own parsers alone."""
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as stream:
            return sum(1 for _ in csv.reader(stream)) - 1
    text = file.read_text(encoding="utf-8")
    try:
        value = json.loads(text)
    except ValueError:
        return sum(1 for line in text.split("\n") if line.strip())
    records = value["data"] if isinstance(value, dict) and "data" in value else value
    records = records if isinstance(records, list) else [records]
    paragraphs = [p for record in records for p in record.get("paragraphs", [record])]
    questions = sum(len(paragraph.get("qas", ())) for paragraph in paragraphs)
    turns = sum(len(record.get("conversations", ())) for record in records)
    return questions or turns or len(records)


def test_kept_and_rejected_make_up_every_file(summary: Summary) -> None:
    """Of each file, the units in rows and the rejected ones are as many as a count that shares no code finds."""
    assert {
        one.name: one.counts.kept_units + one.counts.rejected_units for one in summary.inputs
    } == {one.name: counted_units(SHARED_DATA / one.name) for one in summary.inputs}
