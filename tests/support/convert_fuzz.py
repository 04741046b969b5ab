"""Broken files for the converter, and what must hold for every one of them.

`damaged` makes a file out of decisions alone, so that hypothesis and atheris both drive it; `check` runs the
converter's pure parts on it in memory, `check_run` a whole conversion on disk.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from backports import zstd

from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.part import Part
from kodolly_adapters.convert.reading.inputs import Stream
from kodolly_adapters.convert.reading.layouts import Layout, layout_of
from kodolly_adapters.convert.reading.plan import cut, recognise
from kodolly_adapters.convert.reading.source import Source
from kodolly_adapters.convert.run import convert
from kodolly_adapters.convert.shard import convert_shard
from kodolly_adapters.convert.sources import SOURCES
from kodolly_adapters.errors import InputError, UserError

Choose = Callable[[int], int]  # a number from 0 to below the argument


class Seed(NamedTuple):
    """A valid file: its name, its records, and how they are held: array, data or lines."""

    name: str
    records: list[Any]
    layout: str = "array"


class Damaged(NamedTuple):
    """A file as it comes out; `changed_bytes` says that more than its values was changed."""

    name: str
    data: bytes
    changed_bytes: bool


def _talk(number: int, turns: int) -> dict[str, Any]:
    spoken = [
        {"from": "gpt" if i % 2 else "human", "value": f"{number}번 대화의 {i}번째 말입니다.\r\n끝"}
        for i in range(turns)
    ]
    return {"id": f"T{number}_0", "conversations": spoken}


def _task(number: int) -> dict[str, str]:
    return {
        "instruction": f"{number}에 하나를 더하세요.",
        "input": "" if number % 2 else "<노인입력>",
        "output": f"답은 {number + 1}입니다. &amp; 끝",
    }


def _article(number: int) -> dict[str, Any]:
    context = f"{number}번 마을에는 강과 산이 있다. 강의 이름은 푸른내이다."
    answer = {"text": "푸른내", "answer_start": context.index("푸른내")}
    qas = [
        {"answers": [answer], "id": f"{number}-{i}", "question": "강의 이름은?"} for i in range(2)
    ]
    return {"paragraphs": [{"qas": qas, "context": context}], "title": f"마을 {number}"}


def _page(number: int) -> dict[str, Any]:
    answer = "<td>푸른내</td>"
    context = f"<html><body><h1>마을 {number}</h1><p>마을이다.</p><table><tr><th>강</th>{answer}</tr></table>"
    texts = {"text": answer, "answer_start": context.index(answer)}
    html = {"html_answer_text": answer, "html_answer_start": context.index(answer)}
    qas = [{"answer": texts | html, "question": "강의 이름은?", "id": str(number)}]
    page = {"title": "마을", "url": "https://example.org", "context": context}
    return {**page, "raw_html": context, "qas": qas}


SEEDS = (
    Seed("ko_dataset.json", [_talk(i, i) for i in range(5)]),
    Seed("ko_alpaca_style_dataset.json", [_task(i) for i in range(5)]),
    Seed("ko_alpaca_data.json", [_task(i) for i in range(5)]),
    Seed("KoAlpaca_v1.1.jsonl", [_task(i) for i in range(5)], "lines"),
    Seed(
        "databricks-dolly-15k-ko.jsonl",
        [
            {"instruction": f"{i}?", "context": "", "response": "예.", "category": "open_qa"}
            for i in range(5)
        ],
        "lines",
    ),
    Seed("KorQuAD_v1.0_dev.json", [_article(i) for i in range(3)], "data"),
    Seed("korquad2.1_dev_00.json", [_page(i) for i in range(3)], "data"),
)

_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 2**70, 1.5, "", " ", "\ufeff", "\u200b", "&amp;", "<table><tr><td>", "\x00", "ㄱ" * 300,
    [], {}, [[]], [None], [{}], {"": ""}, {"id": "x", "title": "y"}, '"}, {"id": "', "</", "\u3000",
    "system", "gpt", "human", {"text": "푸른내", "answer_start": 10**12},
)  # fmt: skip
_BYTES = (
    b"", b"}", b"]", b",", b'"', b"\\", b"\xff", b"\xed\xa0\x80", b"\x00", b"}, {", b"]}", b"[" * 3000, b"NaN",
    b"\\ud800", b"\r\n", b"\xef\xbb\xbf", b'}, {"id": "', b'}, {"instruction": "', b'"data": []', b'{"a":1}\n',
)  # fmt: skip


def damaged(choose: Choose) -> Damaged:
    """A valid file of some source after up to six changes of its values and up to three of its bytes."""
    seed = SEEDS[choose(len(SEEDS))]
    records: list[Any] = json.loads(json.dumps(seed.records))
    for _ in range(choose(7)):
        _change(records, choose)
    data = _written(records, seed.layout, choose)
    before = data
    for _ in range(max(choose(7) - 3, 0)):
        at, length = choose(len(data) + 1), choose(40)
        if choose(4) == 0:
            data = data[:at]
        else:
            data = data[:at] + _BYTES[choose(len(_BYTES))] + data[at + length * choose(2) :]
    return Damaged(seed.name, data, data != before)


def _change(records: list[Any], choose: Choose) -> None:
    """One change at a random depth: an odd value, a key less, an element twice, other places swapped."""
    node: Any = records
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = keys[choose(len(keys))]
        below = node[key]
        if not (isinstance(below, dict | list) and below) or choose(3) == 0:
            break
        node = below
    kind = choose(4)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, list):
        node.insert(choose(len(node) + 1), json.loads(json.dumps(below)))
    elif kind == 2 and isinstance(node, dict):
        node[f"{key}x"] = node.pop(key)
    else:
        node[key] = deepcopy(_ODD[choose(len(_ODD))])


def _written(records: list[Any], layout: str, choose: Choose) -> bytes:
    """The records as JSON in one of the spacings that files come in."""
    indent = (None, 2, None, 1)[choose(4)]
    separators = ((", ", ": "), (",", ":"), (" ,", " : "))[choose(3)]
    ascii_ = choose(2) == 0

    def dump(value: Any, indent: int | None = indent) -> str:
        return json.dumps(value, ensure_ascii=ascii_, indent=indent, separators=separators)

    if layout == "lines":
        text = ("\r\n" if choose(3) == 0 else "\n").join(dump(record, None) for record in records)
    elif layout == "data":
        text = dump({"version": "1", "data": records} if choose(2) else {"data": records})
    else:
        text = dump(records)
    return (b"\xef\xbb\xbf" if choose(8) == 0 else b"") + text.encode("utf-8", "surrogatepass")


def check(file: Damaged, size: int, options: Options | None = None) -> str:
    """All that must hold for the converter's pure parts, whatever the file, cut into pieces of `size` bytes.

    Returns what became of it: unknown, named (in an error) or converted.
    """
    layout = layout_of(file.data[: 1 << 20])
    source = recognise(file.name, layout, SOURCES) if layout else None
    if layout is None or source is None:
        return "unknown"  # refused as a whole: check_run sees that the file is named
    options = options or Options()
    try:
        whole = _parts(file, layout, source, options, len(file.data) + 1)
    except UserError as error:
        assert_names_place(error, file)
        whole = None
    try:
        pieces = _parts(file, layout, source, options, size)
    except UserError as error:
        assert_names_place(error, file)
        return "named"
    for part in (*pieces, *(whole or ())):
        counts = part.mark.counts
        assert counts.kept_units + sum(counts.rejections.values()) == counts.units
        assert part.rows.count(b"\n") == counts.rows == len(part.index)
        assert part.rejected.count(b"\n") == counts.rejected_lines
    assert whole is None or _rows(pieces) == _rows(whole), "the pieces' size changes the rows"
    assert whole is None or _records(pieces) == _records(whole)
    if not file.changed_bytes and layout.kind != "objects":
        assert _records(pieces) == _written_records(file), "a record is lost or made up"
    return "converted"


def _parts(
    file: Damaged,
    layout: Layout,
    source: Source,
    options: Options,
    size: int,
) -> list[Part]:
    """The file's parts, made of pieces of some `size` bytes."""
    stream = Stream(file.name, io.BytesIO(file.data), lambda size: None)
    shards = cut(stream, layout, source, file.name, "0", size)
    return [convert_shard(shard, source, options) for shard in shards]


def assert_names_place(error: UserError, file: Damaged) -> None:
    """The error is one about the input, names the file, and a byte inside it."""
    assert isinstance(error, InputError), repr(error)
    assert file.name in str(error)
    assert error.offset is not None, str(error)
    assert 0 <= error.offset <= len(file.data)
    assert f"byte {error.offset}" in str(error)


def _rows(parts: Sequence[Part]) -> bytes:
    return b"".join(part.rows for part in parts)


def _records(parts: Sequence[Part]) -> int:
    return sum(part.mark.counts.records for part in parts)


def _written_records(file: Damaged) -> int:
    """Records in the file, counted by Python's own parser."""
    text = file.data.decode("utf-8-sig", "surrogatepass")
    try:
        value = json.loads(text)
    except ValueError:
        return sum(1 for line in text.split("\n") if line.strip())
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        value = value["data"]
    return len(value) if isinstance(value, list) else 1


def check_run(file: Damaged, packing: int, options: Options | None = None) -> str:
    """A whole conversion: it ends well with every unit accounted for, or names the file and leaves no output."""
    with tempfile.TemporaryDirectory() as place:
        path, out = Path(place) / file.name, Path(place) / "out"
        path.write_bytes(file.data)
        if packing == 1:
            path = path.with_name(f"{file.name}.gz")
            path.write_bytes(gzip.compress(file.data, 1))
        elif packing == 2:
            path = path.with_name(f"{file.name}.zst")
            path.write_bytes(zstd.compress(file.data))
        elif packing == 4:
            path = path.with_name(f"{file.name}.xz")
            path.write_bytes(lzma.compress(file.data, preset=0))
        elif packing == 5:
            info = tarfile.TarInfo(file.name)
            info.size = len(file.data)
            path = path.with_name("all.tar.gz")
            with tarfile.open(path, "w:gz") as tar:
                tar.addfile(info, io.BytesIO(file.data))
        elif packing >= 3:
            path = path.with_name("all.zip")
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(file.name, file.data)
        failure: UserError | None
        try:
            summary = convert([str(path)], out, options, jobs=1)
        except UserError as error:
            failure = error
        else:
            failure = None
        if failure is not None:
            assert isinstance(failure, InputError), repr(failure)
            assert file.name in str(failure) or path.name in str(failure)
            assert not list(out.glob("[!.]*")), "something is half written"
            return "named"
        assert summary.faults() == []
        rejected = (out / "rejected.jsonl").read_bytes().splitlines()
        for line in rejected:
            assert file.name in msgspec.json.decode(line)["file"]
        return "converted"
