"""The data card's pictures: drawn for every kind of summary, the same each time."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from support.convert_files import alpaca, write_json

from kodolly_adapters.convert.options import Options, plain_options
from kodolly_adapters.convert.output.pictures import draw
from kodolly_adapters.convert.output.summary import (
    FIELDS,
    Lengths,
    SourceSummary,
    Summary,
)
from kodolly_adapters.convert.part import Counts
from kodolly_adapters.convert.reading.source import Licence
from kodolly_adapters.convert.run import convert
from kodolly_adapters.convert.schema import LENGTHS_PICTURE, SOURCES_PICTURE

SOURCES, LENGTHS = SOURCES_PICTURE, LENGTHS_PICTURE
PNG = b"\x89PNG\r\n\x1a\n"
LICENCE = Licence("MIT", "https://example.org", True, True, "Name the authors.")


def a_source(title: str, lengths: dict[str, Lengths]) -> SourceSummary:
    """A source of ten rows."""
    return SourceSummary(
        name="some",
        title=title,
        unit="rows",
        licences=(LICENCE,),
        counts=Counts(
            records=11, units=11, rows=10, kept_units=10, rejections={"empty": 1}, rejected_lines=1
        ),
        lengths=lengths,
    )


def a_summary(*sources: SourceSummary) -> Summary:
    """A summary of these sources; the pictures look at nothing else."""
    return Summary(
        version="0.1.0",
        options=plain_options(Options()),
        rules={},
        command=("kodolly", "convert"),
        inputs=(),
        sources=sources,
        splits=(),
    )


SOME = {field: Lengths.of(np.array([0] * 3 + [4] * 5 + [900] * 2)) for field in FIELDS}


def test_two_pictures_1800_pixels_wide(tmp_path: Path) -> None:
    """Both are PNGs twice as wide as the 900 pixels they are shown at, and tell no time and no program."""
    names = draw(a_summary(a_source("Some", SOME)), tmp_path)

    assert names == [SOURCES, LENGTHS]
    for name in names:
        data = (tmp_path / name).read_bytes()
        assert data.startswith(PNG)
        assert struct.unpack(">I", data[16:20]) == (1800,)
        assert not any(chunk in data for chunk in (b"tEXt", b"iTXt", b"tIME"))


@pytest.mark.parametrize(
    "lengths",
    [
        {field: Lengths() for field in FIELDS},
        {"response": Lengths.of(np.full(10, 1))},
        {field: Lengths.of(np.full(10, 3_000_000)) for field in FIELDS},
    ],
    ids=["no rows", "one field of one character", "beyond the last edge"],
)
def test_odd_lengths_are_drawn(lengths: dict[str, Lengths], tmp_path: Path) -> None:
    """Empty fields, missing fields and extreme lengths are no reason to fail."""
    assert draw(a_summary(a_source("Some", lengths)), tmp_path) == [SOURCES, LENGTHS]


def test_a_korean_title_needs_no_korean_font(tmp_path: Path) -> None:
    """A title in Hangul is replaced by the source's name: no missing glyph, so no warning."""
    assert draw(a_summary(a_source("한국어 자료", SOME)), tmp_path)


def test_nothing_read_draws_nothing(tmp_path: Path) -> None:
    """Without sources there is no picture, without lengths only the one of the sources."""
    nothing = msgspec.structs.replace(a_source("Some", SOME), lengths={}, counts=Counts())

    assert draw(a_summary(), tmp_path) == []
    assert draw(a_summary(nothing), tmp_path) == [SOURCES]


def test_importing_the_card_loads_no_matplotlib() -> None:
    """Workers that never draw do not pay for matplotlib."""
    seen = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, kodolly_adapters.convert.output.dataset_card; print('matplotlib' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert seen.stdout == "False\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A small input."""
    return write_json(tmp_path / "ko_alpaca_data.json", alpaca(20))


def files(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_rerun_of_the_same_input_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    """Twice the same command, twice the same files, pictures and card included."""
    convert([str(raw)], tmp_path / "out", jobs=1)
    before = files(tmp_path / "out")
    convert([str(raw)], tmp_path / "out", jobs=1, force=True)
    assert files(tmp_path / "out") == before
    assert "pictures/lengths.png" in before


def test_force_leaves_no_rows_of_the_run_before(raw: Path, tmp_path: Path) -> None:
    """Rows of another format or option do not stay beside the new ones."""
    convert([str(raw)], tmp_path / "out", Options(provenance=True), jobs=1)
    convert([str(raw)], tmp_path / "out", Options(format="parquet"), jobs=1, force=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "convert.json",
        "dataset_card.md",
        "pictures",
        "rejected.jsonl",
        "train.parquet",
        "validation.parquet",
    ]
