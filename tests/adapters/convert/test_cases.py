"""Files of kinds that people have and that failed once, as they are: rows, rejected units and exit status of each."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support.shared_data import SHARED_DATA

from kodolly_adapters.convert import cli
from kodolly_adapters.convert.output.summary import Summary

CASES = SHARED_DATA.parent / "cases" / "data"
# Rows, rejected units and exit status; no rows and no units where the file is refused as a whole.
TABLE = {
    # shapes
    "KoAlpaca_v1.1.jsonl": (5, 0, 0),
    "TL_span_extraction.json": (1, 0, 0),
    "alpaca.csv": (5, 0, 0),
    "dolly.csv": (5, 0, 0),
    "klue-mrc-v1.1_train.json": (2, 1, 0),
    "kullm-v2.jsonl": (5, 0, 0),
    "oig-smallchip2-dedu.jsonl": (5, 0, 0),
    "openai_messages.jsonl": (5, 5, 0),
    "output_object.jsonl": (5, 0, 0),
    "prompt_completion.jsonl": (5, 0, 0),
    "sharegpt_role_content.json": (10, 0, 0),
    "squad_kor_v1_hf.jsonl": (1, 0, 0),
}

pytestmark = [
    pytest.mark.usefixtures("no_pictures"),
    pytest.mark.skipif(not CASES.is_dir(), reason="no case files here"),
]


@pytest.mark.parametrize("name", TABLE)
def test_a_case(name: str, tmp_path: Path) -> None:
    """The file becomes its rows, its rejected units are counted, and the status says whether it became any."""
    out = tmp_path / "out"
    status = cli.main([str(CASES / name), "--out", str(out), "--jobs", "1", "--quiet"])
    rows, rejected = 0, 0
    if (out / "convert.json").exists():
        summary = msgspec.json.decode((out / "convert.json").read_bytes(), type=Summary)
        rows = sum(split.rows for split in summary.splits)
        rejected = sum(one.counts.rejected_units for one in summary.inputs)
    assert (rows, rejected, status) == TABLE[name]
