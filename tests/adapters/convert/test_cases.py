"""Files of kinds that people have and that failed once, as they are: rows, rejected units and exit status of each."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support.shared_data import SHARED_DATA

from kodolly import cli
from kodolly_adapters.convert.output.summary import Summary

CASES = SHARED_DATA.parent / "cases" / "data"
# Rows, rejected units, exit status, and a part of the message where that is not 0.
TABLE = {
    # shapes
    "KoAlpaca_v1.1.jsonl": (5, 0, 0, ""),
    "TL_span_extraction.json": (1, 0, 0, ""),
    "alpaca.csv": (5, 0, 0, ""),
    "dolly.csv": (5, 0, 0, ""),
    "klue-mrc-v1.1_train.json": (2, 1, 0, ""),
    "kullm-v2.jsonl": (5, 0, 0, ""),
    "oig-smallchip2-dedu.jsonl": (5, 0, 0, ""),
    "openai_messages.jsonl": (5, 5, 0, ""),
    "output_object.jsonl": (5, 0, 0, ""),
    "prompt_completion.jsonl": (5, 0, 0, ""),
    "sharegpt_role_content.json": (10, 0, 0, ""),
    "squad_kor_v1_hf.jsonl": (1, 0, 0, ""),
    # packings, encodings, and forms of JSON and tables
    "alpaca.jsonl.bz2": (5, 0, 0, ""),
    "alpaca.tar.gz": (5, 0, 0, ""),
    "alpaca.tsv": (5, 0, 0, ""),
    "concat_200.jsonl": (200, 0, 0, ""),
    "concat_arrays.json": (5, 0, 0, ""),
    "cp949_200.jsonl": (200, 0, 0, ""),
    "dict_of_records.json": (5, 0, 0, ""),
    "dolly_pandas_index.csv": (4, 0, 0, ""),
    "enc_cp949.jsonl": (5, 0, 0, ""),
    "enc_utf16.jsonl": (5, 0, 0, ""),
    "trailing_comma.jsonl": (5, 0, 0, ""),
    "train-00000-of-00001.parquet": (5, 0, 0, ""),
    # no data
    "html_error.json": (0, 0, 1, "is an HTML page, not the data"),
    "lfs_pointer.jsonl": (0, 0, 1, "is a Git LFS pointer, not the data: run `git lfs pull`"),
}

pytestmark = [
    pytest.mark.usefixtures("no_pictures"),
    pytest.mark.skipif(not CASES.is_dir(), reason="no case files here"),
]


@pytest.mark.parametrize("name", TABLE)
def test_a_case(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file becomes its rows, its rejected units are counted, and a refusal says what the file is."""
    out = tmp_path / "out"
    rows, rejected, status, message = TABLE[name]
    argv = ["convert", str(CASES / name), "--out", str(out), "--jobs", "1", "--quiet"]
    assert cli.main(argv) == status
    assert message in capsys.readouterr().err
    summary = None
    if (out / "convert.json").exists():
        summary = msgspec.json.decode((out / "convert.json").read_bytes(), type=Summary)
    splits, inputs = (summary.splits, summary.inputs) if summary else ((), ())
    assert sum(split.rows for split in splits) == rows
    assert sum(one.counts.rejected_units for one in inputs) == rejected
