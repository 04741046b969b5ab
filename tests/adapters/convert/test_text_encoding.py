"""Texts that are not UTF-8: guessed honestly, decoded and said, or refused with the command that helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.convert_files import alpaca, read_lines, write_lines

from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.output.summary import Summary
from kodolly_adapters.convert.reading.text_encoding import encoding_of
from kodolly_adapters.convert.run import convert
from kodolly_adapters.errors import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")

RECORDS = alpaca(200)
TEXT = "\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS)
JAPANESE = "これは日本語の文章です。とても面白いと思います。" * 20
CHINESE = (
    "中华人民共和国的首都是北京人口超过两千万历史悠久世界最长的城墙在中国我们应该学习数学物理" * 20
)  # every byte of it in GBK is CP949 too, but half of it Hanja


def run(path: Path, out: Path, *, keep_going: bool = False) -> Summary:
    return convert([str(path)], out, Options(validation=0, keep_going=keep_going), jobs=1)


@pytest.mark.parametrize(
    ("codec", "read_as"),
    [
        ("utf-8", ""),
        ("utf-8-sig", ""),
        ("utf-16", "UTF-16"),
        ("utf-16-le", "UTF-16-LE"),
        ("utf-16-be", "UTF-16-BE"),
        ("utf-32", "UTF-32"),
        ("cp949", "CP949"),
        ("euc-kr", "CP949"),
    ],
)
@pytest.mark.parametrize("form", ["lines", "array", "csv"])
def test_a_text_is_read_in_its_encoding(
    tmp_path: Path, codec: str, read_as: str, form: str
) -> None:
    """The rows are those of the UTF-8 file, whatever the encoding; the summary says what it was."""
    text = TEXT if form == "lines" else json.dumps(RECORDS, ensure_ascii=False)
    if form == "csv":
        lines = [",".join(one.values()) for one in RECORDS]
        text = "\r\n".join(["instruction,input,output", *lines])
    data = text.encode(codec)
    (tmp_path / "rows.bin").write_bytes(data)
    summary = run(tmp_path / "rows.bin", tmp_path / "out")
    write_lines(tmp_path / "rows.jsonl", RECORDS)
    run(tmp_path / "rows.jsonl", tmp_path / "plain")
    assert read_lines(tmp_path / "out" / "train.jsonl") == read_lines(
        tmp_path / "plain" / "train.jsonl"
    )
    assert (summary.inputs[0].read_as, summary.inputs[0].bytes) == (read_as, len(data))


@pytest.mark.parametrize("codec", ["cp949", "utf-8"])
def test_one_broken_line_costs_itself_only(tmp_path: Path, codec: str) -> None:
    """A byte that is in no encoding does not change the guess for the others, and rejects its own line."""
    lines = TEXT.encode(codec).split(b"\n")
    lines[100] = lines[100].replace(b'"input"', b'\xff"input"').replace(b'": "', b'": "\xff', 1)
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    summary = run(tmp_path / "rows.jsonl", tmp_path / "out")
    assert (summary.inputs[0].counts.rows, summary.rejected_lines) == (199, 1)
    (line,) = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert (line["line"], line["reason"]) == (101, "not-json")


def test_a_long_text_is_recoded_across_its_pieces(tmp_path: Path) -> None:
    """Characters that lie on the borders of what is read at once stay whole."""
    (tmp_path / "rows.jsonl").write_bytes((TEXT + "\n").encode("cp949") * 120)
    summary = run(tmp_path / "rows.jsonl", tmp_path / "out")
    assert (summary.inputs[0].counts.rows, summary.rejected_lines) == (24_000, 0)


@pytest.mark.parametrize(
    ("text", "codec"),
    [(JAPANESE, "euc-jp"), (JAPANESE, "shift-jis"), (CHINESE, "gbk"), ("é à ü" * 50, "latin-1")],
)
def test_text_in_another_encoding_is_refused_with_the_command(
    tmp_path: Path, text: str, codec: str
) -> None:
    """It is neither misread as Korean nor taken for broken UTF-8; the error says how to convert it."""
    record = json.dumps({"instruction": text, "output": text}, ensure_ascii=False)
    (tmp_path / "rows.jsonl").write_bytes(record.encode(codec))
    with pytest.raises(InputError, match=r"rows\.jsonl: is text in an unknown encoding.*iconv -f"):
        run(tmp_path / "rows.jsonl", tmp_path / "out")


@pytest.mark.parametrize(
    ("head", "codec"),
    [
        ("가나".encode()[:-1], "utf-8"),
        ("가나".encode("cp949")[:-1], "cp949"),
        (b'{"a": 1}', "utf-8"),
        (b"", "utf-8"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\xff\xfe\xff\xfe\xff\xfe\xff", "utf-8"),
    ],
)
def test_a_text_cut_inside_a_character_is_no_other_encoding(head: bytes, codec: str) -> None:
    """The beginning of a long file may end anywhere; what is no text is left to the reader."""
    assert encoding_of(head, is_whole=False) == codec
