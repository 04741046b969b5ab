"""Rows equal the study's mapping of its own printed samples, field by field, with every rule off."""

import json
from collections import Counter
from typing import Any

import msgspec
import pytest
from support.shared_data import SHARED_DATA, needs_shared_data

from kodolly_adapters.convert.cleaning.clean import Cleaner
from kodolly_adapters.convert.cleaning.rules import all_rules, modes_of
from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.schema import Draft
from kodolly_adapters.convert.sources import BY_NAME

Fields = tuple[str, str, str, str]
OFF = {rule.name: "off" for rule in all_rules().values() if "off" in rule.modes}


def rows(name: str, records: list[Any], **more: Any) -> list[Fields]:
    source = BY_NAME[name]
    assert source is not None
    options = Options(rules=OFF, **more)
    cleaner, counts = Cleaner(modes_of(OFF, source.rules), options), Counter[str]()
    found = []
    for record in records:
        for draft in source.drafts(msgspec.convert(record, source.record), options):
            assert isinstance(draft, Draft)
            assert cleaner.clean(draft, counts) == (True, [])
            found.append((draft.instruction, draft.context, draft.response, draft.category))
    assert not counts
    return found


def sample(path: str) -> Any:
    return json.loads((SHARED_DATA / path).read_text(encoding="utf-8"))


@needs_shared_data
@pytest.mark.parametrize("as_written", [False, True])
def test_kovicuna(as_written: bool) -> None:
    """Each human turn and the gpt turn after it are a row; the literal table turns them round."""
    records = sample("seed_samples/kovicuna_QWJhYvA_0.json")
    said = [turn["value"] for record in records for turn in record["conversations"]]
    pairs = list(zip(said[::2], said[1::2], strict=True))
    assert len(pairs) == 6
    if as_written:
        pairs = [(answer, question) for question, answer in pairs]
    found = rows("kovicuna", records, kovicuna_roles="as-written" if as_written else "human-asks")
    assert found == [(asked, "", answer, "open_qa") for asked, answer in pairs]


@needs_shared_data
def test_alpaca() -> None:
    """instruction, input, output are instruction, context, response."""
    records = sample("seed_samples/alpaca_korean_1.json")
    assert rows("koalpaca", records) == [
        (record["instruction"], record["input"], record["output"], "open_qa") for record in records
    ]


@needs_shared_data
def test_korquad1() -> None:
    """Question, paragraph and the first answer are instruction, context and response."""
    record = sample("seed_samples/korquad1_paragraph.json")
    assert rows("korquad1", [record]) == [
        (asked["question"], record["context"], asked["answers"][0]["text"], "open_qa")
        for asked in record["qas"]
    ]


@needs_shared_data
def test_korquad2() -> None:
    """The whole page as it stands in the file is the context, the answer's text the response."""
    pages = sample("korquad2/korquad2.1_dev_00.hfdummy.json")["data"]
    assert rows("korquad2", pages, korquad2_context="html") == [
        (asked["question"], page["context"], asked["answer"]["text"], "open_qa")
        for page in pages
        for asked in page["qas"]
    ]
