"""Records of JSON that is not one valid document are counted as records, not as one broken unit."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from support.convert_files import alpaca, korquad1, read_lines

from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.output.summary import Summary
from kodolly_adapters.convert.reading.objects import pieces
from kodolly_adapters.convert.reading.source import border_pattern
from kodolly_adapters.convert.run import convert
from kodolly_adapters.errors import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")

RECORDS = alpaca(200)
TEXTS = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
PRETTY = [json.dumps(record, ensure_ascii=False, indent=2) for record in RECORDS]
ARRAYS = [f"[{', '.join(TEXTS[n : n + 50])}]" for n in range(0, 200, 50)]
FORMS = {
    "joined objects": "".join(TEXTS),
    "objects with commas": ",".join(TEXTS),
    "lines with commas": ",\n".join(TEXTS) + ",\n",
    "pretty objects": "\n".join(PRETTY),
    "pretty objects with commas": ",\n".join(PRETTY),
    "joined arrays": "".join(ARRAYS),
    "arrays a line": "\n".join(ARRAYS),
    "array with a comma at its end": f"[{','.join(TEXTS)},]",
    "array without commas": f"[{' '.join(TEXTS)}]",
    "dict of records": json.dumps(dict(enumerate(RECORDS)), ensure_ascii=False),
    "pretty dict of records": json.dumps(dict(enumerate(RECORDS)), ensure_ascii=False, indent=1),
    "list in an object": json.dumps({"version": "1", "rows": RECORDS, "count": 200}),
    "two lists in an object": json.dumps({"train": RECORDS[:99], "test": RECORDS[99:]}),
    "two objects a line": "\n".join(map("".join, zip(TEXTS[::2], TEXTS[1::2], strict=True))),
    "joined files with marks": "\ufeff".join(["", *ARRAYS]),
}


def run(path: Path, out: Path, *, keep_going: bool = False) -> Summary:
    return convert([str(path)], out, Options(validation=0, keep_going=keep_going), jobs=1)


@pytest.mark.parametrize("form", FORMS)
def test_records_are_read_in_any_form(tmp_path: Path, form: str) -> None:
    """However 200 records are strung together, they are 200 records, in order."""
    (tmp_path / "rows.json").write_text(FORMS[form], encoding="utf-8")
    summary = run(tmp_path / "rows.json", tmp_path / "out")
    assert summary.rejected_lines == 0
    rows = read_lines(tmp_path / "out" / "train.jsonl")
    assert [row["response"] for row in rows] == [record["output"] for record in RECORDS]


@pytest.mark.parametrize("form", FORMS)
def test_one_broken_record_of_200_is_one(tmp_path: Path, form: str) -> None:
    """With --keep-going a missing quote costs its record, whatever stands around it."""
    text = FORMS[form].replace(TEXTS[100], TEXTS[100].replace('", ', ", ", 1))
    text = text.replace(PRETTY[100], PRETTY[100].replace('",\n', ",\n", 1))
    if text == FORMS[form]:  # json.dumps of the whole
        answer = json.dumps(RECORDS[100]["output"], ensure_ascii="rows" in text or "test" in text)
        assert answer in text
        text = text.replace(answer, answer[:-1])
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    summary = run(tmp_path / "rows.json", tmp_path / "out", keep_going=True)
    assert (summary.inputs[0].counts.rows, summary.rejected_lines) == (199, 1)
    (line,) = read_lines(tmp_path / "out" / "rejected.jsonl")
    at = text.encode()[line["byte"] :].decode()
    assert at.startswith("{"), "the place of the broken record"
    assert line["line"] == text.encode()[: line["byte"]].count(b"\n") + 1
    assert RECORDS[100]["output"] in at[:900] or "\\u" in at[:900]


@pytest.mark.parametrize("form", ["array", "dict of records", "list in an object"])
def test_what_is_cut_between_two_records_is_not_whole(tmp_path: Path, form: str) -> None:
    """A download that ends exactly after a record is still cut short; with --keep-going its records count."""
    text = f"[{', '.join(TEXTS)}]" if form == "array" else FORMS[form]
    text = text[: text.rindex("}, ") + 1]
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"rows\.json: byte \d+: ends in the middle"):
        run(tmp_path / "rows.json", tmp_path / "out")
    assert run(tmp_path / "rows.json", tmp_path / "out", keep_going=True).inputs[0].counts.rows > 90


def test_articles_in_another_wrapper_are_articles(tmp_path: Path) -> None:
    """SQuAD's `data` may stand after an object, and its articles may be the values of one."""
    articles = korquad1(7)["data"]
    forms = [{"Dataset": {"id": [1, {}]}, "data": articles}, dict(enumerate(articles))]
    for number, form in enumerate(forms):
        (tmp_path / "rows.json").write_text(json.dumps(form), encoding="utf-8")
        summary = run(tmp_path / "rows.json", tmp_path / f"out{number}")
        assert summary.inputs[0].counts.rows == 28


def test_a_key_that_no_source_knows_first_is_a_border_too(tmp_path: Path) -> None:
    """Records that begin with a key of the file's own are told apart where one is broken."""
    texts = [json.dumps({"번호": n, **record}) for n, record in enumerate(RECORDS)]
    texts[7] = texts[7].replace('": "', '": ', 1)
    (tmp_path / "rows.json").write_text(f"[{', '.join(texts)}]", encoding="utf-8")
    summary = run(tmp_path / "rows.json", tmp_path / "out", keep_going=True)
    assert (summary.inputs[0].counts.rows, summary.rejected_lines) == (199, 1)


@pytest.mark.parametrize(
    "unit", ['{"id":[', '{"id":[{},', '{"id":"', '}{"id":', '[{"id":', "},", '"a":', "\\{", "{ "]
)
@pytest.mark.parametrize("in_wrapper", [False, True])
def test_hostile_text_takes_linear_time(unit: str, in_wrapper: bool) -> None:
    """A hundred kilobytes of brackets that never close are given up in seconds, with no byte lost."""
    data = unit.encode() * (100_000 // len(unit))
    start = time.process_time()
    *parts, _ = pieces(data, border_pattern(frozenset({"id"})), in_wrapper=in_wrapper)
    assert time.process_time() - start < 10  # of quadratic time it would be minutes
    assert all(data[part.start :].startswith(part.text) for part in parts)
