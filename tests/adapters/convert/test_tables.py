"""Tables: Parquet, Arrow, CSV and TSV give the rows that the same records as JSON give."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc, parquet
from support.convert_files import alpaca, kovicuna, read_lines, write_lines

from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.output.summary import Summary
from kodolly_adapters.convert.run import convert
from kodolly_adapters.errors import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")


def run(path: Path, out: Path) -> Summary:
    return convert([str(path)], out, Options(validation=0, provenance=False), jobs=1)


def rows(path: Path, out: Path) -> list[dict[str, Any]]:
    run(path, out)
    return read_lines(out / "train.jsonl")


def write_parquet(table: pa.Table, path: Path) -> None:
    parquet.write_table(table, path, row_group_size=100)


def write_stream(table: pa.Table, path: Path) -> None:
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def write_file(table: pa.Table, path: Path) -> None:
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


Write = Callable[[pa.Table, Path], None]
WRITERS = pytest.mark.parametrize("write", [write_parquet, write_stream, write_file])


@WRITERS
@pytest.mark.parametrize("records", [alpaca(700), kovicuna(50)], ids=["flat", "nested"])
def test_a_table_gives_the_rows_of_its_records(
    tmp_path: Path, write: Write, records: list[dict[str, Any]]
) -> None:
    """Texts, lists and structs reach the sources as JSON's do; the card says what the file was read as."""
    write(pa.Table.from_pylist(records), tmp_path / "train.bin")
    write_lines(tmp_path / "train.jsonl", records)
    summary = run(tmp_path / "train.bin", tmp_path / "table")
    assert summary.inputs[0].bytes == (tmp_path / "train.bin").stat().st_size
    assert summary.inputs[0].read_as.split()[0] in ("Parquet", "Arrow")
    assert f"read as {summary.inputs[0].read_as}" in (
        tmp_path / "table" / "dataset_card.md"
    ).read_text(encoding="utf-8")
    assert read_lines(tmp_path / "table" / "train.jsonl") == rows(
        tmp_path / "train.jsonl", tmp_path / "lines"
    )


def test_a_parquet_in_a_zip_is_read(tmp_path: Path) -> None:
    """A table that cannot be sought in is copied to disk first."""
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(alpaca(5)), buffer)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/train.parquet", buffer.getvalue())
    assert len(rows(tmp_path / "all.zip", tmp_path / "out")) == 5


def test_a_saved_data_set_is_read_without_its_descriptions(tmp_path: Path) -> None:
    """Of a folder that `save_to_disk` wrote the rows are read; its JSON files are listed, as no data."""
    import datasets

    data = datasets.Dataset.from_list(alpaca(30))
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "saved")
    summary = run(tmp_path / "saved", tmp_path / "out")
    assert [one.read_as for one in summary.inputs] == ["Arrow stream"]
    assert summary.inputs[0].counts.rows == 30
    assert {one.name.rpartition("/")[2] for one in summary.skipped} == {
        "state.json",
        "dataset_info.json",
        "dataset_dict.json",
    }
    assert {one.why for one in summary.skipped} == {"describes a saved data set and holds no rows"}


@WRITERS
def test_a_table_cut_short_is_named(tmp_path: Path, write: Write) -> None:
    """Half a table is refused by its name, and leaves no rows."""
    path = tmp_path / "train.bin"
    write(pa.Table.from_pylist(alpaca(2000)), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(InputError, match=r"train\.bin"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out" / "train.jsonl").exists()


def test_a_row_that_is_not_utf8_costs_itself_only(tmp_path: Path) -> None:
    """One damaged text in a Parquet file is one rejection, with the number of its row."""
    texts = [f"질문 {n}".encode() for n in range(500)]
    texts[321] = b"\xbe\xee"
    offsets = pa.array(texts, pa.binary())
    column = pa.StringArray.from_buffers(len(texts), offsets.buffers()[1], offsets.buffers()[2])
    table = pa.table({"instruction": column, "output": ["답"] * len(texts)})
    parquet.write_table(table, tmp_path / "train.parquet")
    assert len(rows(tmp_path / "train.parquet", tmp_path / "out")) == 499
    (line,) = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert (line["line"], line["reason"]) == (322, "not-json")


def test_a_table_without_rows_is_named(tmp_path: Path) -> None:
    """An empty Parquet file is no crash, and no empty file either."""
    schema = pa.schema([("instruction", pa.string()), ("output", pa.string())])
    parquet.write_table(schema.empty_table(), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"train\.parquet: is a Parquet without rows"):
        run(tmp_path / "train.parquet", tmp_path / "out")


RECORDS = [
    {"instruction": "수도는, 어디?", "input": "", "output": '"서울"\n입니다; 예.'},
    {"instruction": "둘\t셋?", "input": "참고", "output": "넷"},
]


@pytest.mark.parametrize("delimiter", [",", "\t", ";"], ids=["comma", "tab", "semicolon"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "bom"])
@pytest.mark.parametrize("index", [False, True], ids=["", "index"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_a_csv_gives_the_rows_of_its_records(
    tmp_path: Path, delimiter: str, mark: str, index: bool, ending: str
) -> None:
    """Any of the usual delimiters, a byte order mark, pandas' index, quotes with line ends in them."""

    def line(fields: list[str]) -> str:
        return delimiter.join('"{}"'.format(f.replace('"', '""')) for f in fields) + ending

    lines = [line([""] * index + list(RECORDS[0]))]
    lines += [line([str(n)] * index + list(one.values())) for n, one in enumerate(RECORDS)]
    (tmp_path / "rows.csv").write_bytes((mark + "".join(lines)).encode())
    (tmp_path / "rows.json").write_text(json.dumps(RECORDS), encoding="utf-8")
    assert rows(tmp_path / "rows.csv", tmp_path / "csv") == rows(
        tmp_path / "rows.json", tmp_path / "json"
    )


def test_a_long_field_of_a_csv_is_read(tmp_path: Path) -> None:
    """A page of 200,000 characters in one field neither stops the file nor derails its neighbours."""
    text = "instruction,output\n질문,답\n질문," + "가나" * 100_000 + "\n질문,답\n"
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    assert [len(row["response"]) for row in rows(tmp_path / "rows.csv", tmp_path / "out")] == [
        1,
        200_000,
        1,
    ]


def test_a_csv_of_no_source_names_its_columns(tmp_path: Path) -> None:
    """The error says which columns the file has."""
    (tmp_path / "rows.csv").write_text("이름,나이,도시\n김,3,서울\n", encoding="utf-8")
    with pytest.raises(InputError, match="its columns are 이름, 나이, 도시"):
        run(tmp_path / "rows.csv", tmp_path / "out")
