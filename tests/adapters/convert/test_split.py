"""Cutting a stream at record borders: nothing lost, nothing torn, whatever the sizes."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.convert_files import alpaca, korquad1, korquad2, kovicuna

from kodolly_adapters.convert.reading.inputs import Stream
from kodolly_adapters.convert.reading.layouts import layout_of
from kodolly_adapters.convert.reading.plan import cut
from kodolly_adapters.convert.reading.records import Shard, decode, places
from kodolly_adapters.convert.reading.source import Source
from kodolly_adapters.convert.schema import TRAIN, VALIDATION
from kodolly_adapters.convert.shard import official_split
from kodolly_adapters.convert.sources import BY_NAME

HOSTILE = '"}, {"instruction": "x"} \\ }, {"id": [ ] {'


def source_named(name: str) -> Source:
    source = BY_NAME[name]
    assert source is not None
    return source


def shards(data: bytes, source: Source, size: int) -> list[Shard]:
    """The shards of a file held in memory, cut at about `size` bytes."""
    layout = layout_of(data[: 1 << 20])
    assert layout is not None
    stream = Stream("file", io.BytesIO(data), lambda size: None)
    return list(cut(stream, layout, source, "file", "0", size))


FILES: list[tuple[str, Any]] = [
    ("koalpaca", alpaca(40)),
    ("kovicuna", kovicuna(12)),
    ("korquad1", korquad1(7)),
    ("korquad2", korquad2(5)),
]


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("size", [64, 700, 5_000, 10_000_000])
@pytest.mark.parametrize(("name", "value"), FILES, ids=[name for name, _ in FILES])
def test_pieces_hold_every_record_once(
    name: str, value: Any, size: int, indent: int | None
) -> None:
    """Whatever the size of pieces and the spacing of a file, its records come out once and in order."""
    source = source_named(name)
    data = json.dumps(value, ensure_ascii=False, indent=indent).encode()
    whole = shards(data, source, len(data) * 2)
    pieces = shards(data, source, size)
    assert len(whole) == 1
    assert len(pieces) > 1 or size >= len(data)
    assert [r for shard in pieces for r in decode(shard, source)] == decode(whole[0], source)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=20), st.integers(1, 400), st.booleans())
def test_text_that_looks_like_a_border_is_none(
    texts: list[str], size: int, ascii_only: bool
) -> None:
    """Quotes, braces and keys inside a text never tear a record."""
    source = source_named("koalpaca")
    records = [{"instruction": text + HOSTILE, "output": HOSTILE + text} for text in texts]
    try:
        data = json.dumps(records, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:  # lone surrogates have no UTF-8
        data = json.dumps(records).encode()
    results = [record for shard in shards(data, source, size) for record in decode(shard, source)]
    assert [(r["instruction"], r["output"]) for r in results] == [
        (record["instruction"], record["output"]) for record in records
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lines_are_cut_at_line_ends(mark: str, ending: str) -> None:
    """JSONL with or without a byte order mark, LF or CRLF, is cut between lines only."""
    source = source_named("koalpaca")
    data = (mark + "".join(json.dumps(r, ensure_ascii=False) + ending for r in alpaca(30))).encode()
    results = [r for shard in shards(data, source, 500) for r in decode(shard, source)]
    assert [r["output"] for r in results] == [r["output"] for r in alpaca(30)]


def test_quoted_line_ends_do_not_tear_a_csv_record() -> None:
    """A CSV field with line ends, commas and doubled quotes stays whole at every piece size."""
    source = source_named("chatbot-data")
    rows = [(f'질문 {n}, "따옴표"\n둘째 줄', f"답 {n}") for n in range(20)]
    text = "Q,A,label\r\n" + "".join(
        '"{}","{}",0\r\n'.format(q.replace('"', '""'), a) for q, a in rows
    )
    for size in (40, 100, 1_000_000):
        results = [
            r for shard in shards(text.encode(), source, size) for r in decode(shard, source)
        ]
        assert [(r["Q"], r["A"]) for r in results] == rows


@pytest.mark.parametrize("indent", [None, 1])
def test_every_record_knows_its_byte_and_line(indent: int | None) -> None:
    """The place of each record points at its `{`, and at the line that holds it."""
    source = source_named("koalpaca")
    data = json.dumps(alpaca(40), ensure_ascii=False, indent=indent).encode()
    where = []
    for shard in shards(data, source, 900):
        records = decode(shard, source)
        where += places(shard, source, len(records)).tolist()
    assert len(where) == 40
    for (offset, line), record in zip(where, alpaca(40), strict=True):
        assert json.JSONDecoder().raw_decode(data[offset:].decode())[0] == record
        assert line == data.count(b"\n", 0, offset) + 1


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b'[{"a": 1}', "array"),
        (b'\xef\xbb\xbf  [\n{"a"', "array"),
        (b'{"version": "x", "n": 1, "data": [{"p', "data"),
        (b'{"data":[]}', "data"),
        (b'{"a": 1}\n{"a": 2}\n', "lines"),
        (b'{"a": 1}', "lines"),
        (b'{\n "a": 1\n}', "objects"),
        (b"Q,A,label\r\n1,2,3", "csv"),
    ],
)
def test_a_layout_is_told_from_the_first_bytes(head: bytes, kind: str) -> None:
    """Arrays, SQuAD's data, lines, a lone object and CSV are told apart."""
    layout = layout_of(head)
    assert layout is not None
    assert layout.kind == kind


@pytest.mark.parametrize("head", [b"", b"# Title\n\ntext", b"\x89PNG\r\n", b"one line of prose"])
def test_what_is_no_data_has_no_layout(head: bytes) -> None:
    """Prose, pictures and empty files are no data files."""
    assert layout_of(head) is None


def test_a_first_record_longer_than_the_head_still_tells_its_keys() -> None:
    """A page of megabytes is recognised by the keys that come before the cut."""
    head = ('[{"title": "쪽", "url": "", "context": "' + "가" * 1000).encode()
    layout = layout_of(head)
    assert layout is not None
    assert list(layout.record or {}) == ["title", "url", "context"]


def test_a_list_that_is_cut_off_keeps_its_whole_elements() -> None:
    """What stands before the cut tells a source; what is torn is left out."""
    head = b'[{"id": "a", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "val'
    layout = layout_of(head)
    assert layout is not None
    record = layout.record
    assert record == {"id": "a", "conversations": [{"from": "human", "value": "?"}]}


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("KorQuAD_v1.0_dev.json", VALIDATION),
        ("test/train.jsonl", TRAIN),
        ("val/data.jsonl", TRAIN),
        ("all.zip!test/train.json", TRAIN),
        ("all.zip!train/dev.json", VALIDATION),
        ("KorQuAD_2.1_dev_00.zip!0.json", VALIDATION),
        ("dev/KorQuAD_2.1_train_00.zip!0.json", TRAIN),
        ("dev.zip!train_0.json", TRAIN),
        ("A/validation.jsonl (2)", VALIDATION),
    ],
)
def test_the_official_split_is_told_by_the_files_own_name(file: str, split: int) -> None:
    """Folders do not matter; a zip's name does where its member's says nothing."""
    assert official_split(file) == split
