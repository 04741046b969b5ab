"""Records that are broken, of the wrong shape, or only odd."""

from __future__ import annotations

import json
import pickle

import pytest
from support.convert_files import alpaca, korquad1

from kodolly_adapters.convert.reading.layouts import layout_of
from kodolly_adapters.convert.reading.records import Kind, Shard, decode, places
from kodolly_adapters.convert.schema import Rejection
from kodolly_adapters.convert.sources import BY_NAME
from kodolly_adapters.errors import InputError


def shard(data: bytes, source: str = "koalpaca", **place: int) -> Shard:
    layout = layout_of(data)
    assert layout is not None
    kind: Kind = layout.kind
    start = layout.start
    return Shard(key="0", file="f.json", source=source, kind=kind, data=data[start:], offset=start)


def decode_file(data: bytes, source: str = "koalpaca", *, keep_going: bool = False) -> list[object]:
    reader = BY_NAME[source]
    assert reader is not None
    return decode(shard(data, source), reader, keep_going=keep_going)


RECORDS = alpaca(5)
ARRAY = json.dumps(RECORDS, ensure_ascii=False).encode()


def test_a_record_of_the_wrong_shape_is_rejected_alone() -> None:
    """A number where a list belongs refuses that record and says where; its neighbours stay."""
    records = [*korquad1(5)["data"], {"title": "x", "paragraphs": 7}]
    results = decode_file(json.dumps(records).encode(), "korquad1")
    assert len(results) == 6
    assert isinstance(results[5], Rejection)
    assert results[5].reason == "wrong-shape"
    assert "paragraphs" in results[5].detail


def test_a_line_that_is_no_json_is_rejected_alone() -> None:
    """In JSONL a broken line costs itself only."""
    lines = [json.dumps(record).encode() for record in RECORDS]
    results = decode_file(b"\n".join([lines[0], lines[1], lines[2][:-5], b"\xff\xfe", *lines[3:]]))
    assert [getattr(one, "reason", "") for one in results] == [
        "",
        "",
        "not-json",
        "not-json",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("spoil", "where", "message"),
    [
        (lambda data: data[: len(data) // 2], lambda data: len(data) // 2, "ends in the middle"),
        (
            lambda data: data.replace(b'", "output": ', b'" "output": ', 1),
            lambda data: data.index(b'", "output"') + 2,
            "is not JSON",
        ),
        (lambda data: data[:40] + b"\xff" + data[41:], lambda data: 40, "is not UTF-8"),
    ],
)
def test_a_broken_array_names_its_byte(spoil: object, where: object, message: str) -> None:
    """A file cut short, damaged or not UTF-8 stops with its name and the byte offset of the fault."""
    data = spoil(ARRAY)  # type: ignore[operator]
    with pytest.raises(InputError, match=message) as caught:
        decode_file(data)
    assert caught.value.offset is not None
    assert abs(caught.value.offset - where(ARRAY)) <= 3  # type: ignore[operator]
    assert "f.json: byte" in str(caught.value)


def test_keep_going_saves_what_is_whole() -> None:
    """With --keep-going the records around the damage are kept and the damage is rejected."""
    data = ARRAY.replace(b'"output"', b'"output', 1)
    results = decode_file(data, keep_going=True)
    assert [type(one).__name__ for one in results] == ["Rejection", *["dict"] * 4]
    cut = decode_file(ARRAY[:-30], keep_going=True)
    assert [type(one).__name__ for one in cut] == [*["dict"] * 4, "Rejection"]


def test_half_a_surrogate_pair_does_not_stop_a_file() -> None:
    """An emoji cut in two, as escaped JSON may hold it, is the row's fault and not the file's."""
    data = json.dumps([*RECORDS, {"instruction": "반쪽 \ud83d", "output": "x"}]).encode()
    assert len(decode_file(data)) == 6


def test_squad_files_may_have_keys_before_and_after_data() -> None:
    """`version` before or after `data`, or none, makes no difference."""
    value = korquad1(3)
    forms = [value, {"data": value["data"], "version": "x"}, {"data": value["data"]}]
    results = [decode_file(json.dumps(form).encode(), "korquad1") for form in forms]
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 3


def test_an_input_error_crosses_processes_whole() -> None:
    """Pickled and back, the error still names file and offset."""
    error = pickle.loads(pickle.dumps(InputError("f", "is broken", 7)))
    assert str(error) == "f: byte 7: is broken"
    assert error.offset == 7


def csv_shard(data: bytes) -> Shard:
    layout = layout_of(data)
    assert layout is not None
    return Shard(
        key="0",
        file="f.csv",
        source="chatbot-data",
        kind="csv",
        header=layout.header,
        data=data[layout.start :],
        offset=layout.start,
        line=2,
    )


CSV = 'Q,A,label\n"두\n줄",답,0\n\n하나,둘,셋,넷\n깨진 \x00,답,1\n짧다,답\n'.encode()


def test_a_csv_record_knows_its_byte_and_line() -> None:
    """Line ends inside quotes and empty lines do not shift the place of what follows."""
    source = BY_NAME["chatbot-data"]
    assert source is not None
    shard = csv_shard(CSV)
    results = decode(shard, source)
    where = places(shard, source, len(results)).tolist()
    assert [line for _, line in where] == [2, 5, 6, 7]
    starts = ['"두', "하나,", "깨진", "짧다,"]
    assert all(
        CSV[at:].startswith(text.encode()) for (at, _), text in zip(where, starts, strict=True)
    )


def test_a_csv_row_with_too_many_fields_is_rejected() -> None:
    """A row with more fields than the header loses none of them silently; one with fewer has no label."""
    source = BY_NAME["chatbot-data"]
    assert source is not None
    results = decode(csv_shard(CSV), source)
    assert results[1] == Rejection("wrong-shape", "4 fields where the header has 3")
    assert [(one["Q"], one["A"], one["label"]) for one in (results[0], results[3])] == [
        ("두\n줄", "답", "0"),
        ("짧다", "답", None),
    ]


def test_a_csv_that_is_not_utf8_is_saved_line_by_line() -> None:
    """Without --keep-going the byte is named; with it only the bad record is rejected."""
    source = BY_NAME["chatbot-data"]
    assert source is not None
    data = CSV.replace("깨진".encode(), "깨진".encode("cp949"))
    with pytest.raises(InputError, match="is no UTF-8 CSV") as caught:
        decode(csv_shard(data), source)
    assert caught.value.offset == data.index("깨진".encode("cp949"))
    results = decode(csv_shard(data), source, keep_going=True)
    assert [getattr(one, "reason", "") for one in results] == ["", "wrong-shape", "not-unicode", ""]
