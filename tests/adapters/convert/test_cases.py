"""Small files of every form that people have, beside the project where a machine has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.convert_files import read_lines
from support.shared_data import SHARED_DATA

from kodolly import cli

CASES = SHARED_DATA.parent / "cases" / "data"
pytestmark = [
    pytest.mark.usefixtures("no_pictures"),
    pytest.mark.skipif(not CASES.is_dir(), reason="no cases here"),
]

# file: rows, rejected lines, exit status, and a part of the message where it is not 0
FILES = {
    "alpaca.csv": (5, 0, 0, ""),
    "alpaca.jsonl.bz2": (5, 0, 0, ""),
    "alpaca.tar.gz": (5, 0, 0, ""),
    "alpaca.tsv": (5, 0, 0, ""),
    "concat_200.jsonl": (200, 0, 0, ""),
    "concat_arrays.json": (5, 0, 0, ""),
    "cp949_200.jsonl": (200, 0, 0, ""),
    "dict_of_records.json": (5, 0, 0, ""),
    "dolly.csv": (5, 0, 0, ""),
    "dolly_pandas_index.csv": (4, 0, 0, ""),
    "enc_cp949.jsonl": (5, 0, 0, ""),
    "enc_utf16.jsonl": (5, 0, 0, ""),
    "html_error.json": (0, 0, 1, "is an HTML page, not the data"),
    "lfs_pointer.jsonl": (0, 0, 1, "is a Git LFS pointer, not the data: run `git lfs pull`"),
    "trailing_comma.jsonl": (5, 0, 0, ""),
    "train-00000-of-00001.parquet": (5, 0, 0, ""),
}


@pytest.mark.parametrize("file", FILES)
def test_a_case_is_read_or_refused_by_cause(
    tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rows, its rejections and the exit status are right."""
    out = tmp_path / "out"
    status = cli.main(
        ["convert", str(CASES / file), "--out", str(out), "--validation=0", "--jobs=1", "--quiet"]
    )
    *counts, wanted, message = FILES[file]
    assert status == wanted
    assert message in capsys.readouterr().err
    if status == 0:
        written = [len(read_lines(out / f"{name}.jsonl")) for name in ("train", "rejected")]
        assert written == counts
