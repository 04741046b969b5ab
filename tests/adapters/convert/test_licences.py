"""Licences are told by a set's file name, by what stands beside the data or by hand; never by a shape alone."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from support.convert_files import alpaca, write_json

from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.output.summary import Summary
from kodolly_adapters.convert.reading.licences import named
from kodolly_adapters.convert.run import convert
from kodolly_adapters.convert.sources import BY_NAME

pytestmark = pytest.mark.usefixtures("no_pictures")


def run(folder: Path, out: Path, **more: str) -> Summary:
    return convert([str(folder)], out, Options(validation=0.0), jobs=1, **more)  # type: ignore[arg-type]


def licences(summary: Summary) -> dict[str, tuple[str, str]]:
    return {one.name: (one.licence, one.licence_from) for one in summary.inputs}


def test_a_shape_has_no_licence(tmp_path: Path) -> None:
    """A table of somebody's questions is not the chatbot data that has the same header, nor under its licence."""
    raw = tmp_path / "medical.csv"
    raw.write_text("Q,A,label\n열이 나요,쉬세요.,0\n", encoding="utf-8")
    summary = run(raw, tmp_path / "out")
    assert licences(summary) == {"medical.csv": ("unknown", "")}
    card = (tmp_path / "out" / "dataset_card.md").read_text(encoding="utf-8")
    assert "the terms of some rows are unknown" in card
    assert "MIT" not in card
    assert "Chatbot" not in card
    assert "쉬세요" not in card  # no text of rows that perhaps nobody may hand on


@pytest.mark.parametrize("name", ["ChatbotData.csv", "ChatbotData (1).csv"])
def test_a_sets_own_name_has_its_licence(tmp_path: Path, name: str) -> None:
    """The file's name is the set's, so its licence is known."""
    (tmp_path / name).write_text("Q,A,label\n안녕,반가워요.,0\n", encoding="utf-8")
    summary = run(tmp_path / name, tmp_path / "out")
    assert licences(summary) == {name: ("MIT", "its file name")}


HEAD = "---\nlanguage: ko\n{}\n---\n# Data\n"
CC_BY_NC = "Creative Commons Attribution-NonCommercial 4.0 International\n\nterms"


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("README.md", HEAD.format("license: cc-by-nc-4.0"), "CC BY-NC 4.0"),
        ("README.md", HEAD.format("license:\n- apache-2.0"), "apache-2.0"),
        ("README.md", HEAD.format('license: "mit"'), "mit"),
        ("README.md", "# Data\n\nlicense: mit\n", "unknown"),
        ("README.md", HEAD.format("license: unknown"), "unknown"),
        ("dataset_info.json", json.dumps({"license": "cc-by-sa-4.0"}), "CC BY-SA 4.0"),
        ("dataset_info.json", json.dumps({"license": ""}), "unknown"),
        ("dataset_infos.json", json.dumps({"default": {"license": "mit"}}), "mit"),
        ("LICENSE", "MIT License\n\nCopyright", "mit"),
        ("LICENSE.txt", "   Apache License\n   Version 2.0, January 2004", "apache-2.0"),
        ("DATA_LICENSE", CC_BY_NC, "CC BY-NC 4.0"),
        ("LICENSE", "All rights reserved.", "unknown"),
    ],
)
def test_a_licence_is_stated_beside_the_data(
    tmp_path: Path, name: str, text: str, licence: str
) -> None:
    """The hub's head of a README, a dataset_info and licence texts are read; anything else states nothing."""
    folder = tmp_path / "raw"
    (folder / "data").mkdir(parents=True)
    write_json(folder / "data" / "train.json", alpaca(2))
    (folder / name).write_text(text, encoding="utf-8")
    origin = "" if licence == "unknown" else name
    assert licences(run(folder, tmp_path / "out")) == {"data/train.json": (licence, origin)}


def test_the_nearest_statement_counts_and_the_datas_own(tmp_path: Path) -> None:
    """Of two folders the inner one counts, of two licence texts the data's; a file given alone has a neighbour too."""
    inner = tmp_path / "raw" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "LICENSE").write_text("MIT License", encoding="utf-8")
    (inner / "LICENSE").write_text("Apache License\nVersion 2.0", encoding="utf-8")
    (inner / "DATA_LICENSE").write_text(CC_BY_NC, encoding="utf-8")
    file = write_json(inner / "rows.json", alpaca(2))
    expected = ("CC BY-NC 4.0", "DATA_LICENSE")
    assert licences(run(inner.parent, tmp_path / "a")) == {"inner/rows.json": expected}
    assert licences(run(file, tmp_path / "b")) == {"rows.json": expected}


def test_a_statement_in_an_archive_counts(tmp_path: Path) -> None:
    """The card of a zip that was downloaded as a whole is read inside of it."""
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("set/README.md", HEAD.format("license: cc-by-nd-4.0"))
        archive.writestr("set/data/rows.json", json.dumps(alpaca(2)))
    folder = tmp_path / "raw"
    folder.mkdir()
    (tmp_path / "all.zip").rename(folder / "all.zip")
    summary = run(folder, tmp_path / "out")
    assert licences(summary) == {"all.zip!set/data/rows.json": ("CC BY-ND 4.0", "README.md")}


def test_a_licence_stated_by_hand_is_for_what_nothing_else_states(tmp_path: Path) -> None:
    """--license fills the gap and cannot replace what a set's name says."""
    folder = tmp_path / "raw"
    folder.mkdir()
    write_json(folder / "ko_alpaca_data.json", alpaca(2))
    write_json(folder / "own.json", alpaca(2, start=9))
    summary = run(folder, tmp_path / "out", licence="MIT")
    assert licences(summary) == {
        "ko_alpaca_data.json": ("CC BY-NC 4.0", "its file name"),
        "own.json": ("MIT", "--license"),
    }
    assert " --license MIT" in " ".join(summary.command)


def test_a_source_named_by_hand_has_its_licence(tmp_path: Path) -> None:
    """--source says which set a file is, whatever its name, and so its licence."""
    file = write_json(tmp_path / "mine.json", alpaca(2))
    summary = convert([str(file)], tmp_path / "out", Options(), source=BY_NAME["koalpaca"], jobs=1)
    assert licences(summary) == {"mine.json": ("CC BY-NC 4.0", "--source")}


@pytest.mark.parametrize(
    ("name", "commercial", "derivatives"),
    [
        ("cc-by-nc-nd-4.0", False, False),
        ("CC BY-ND 2.0 KR", True, False),
        ("mit", True, True),
        ("openrail", None, None),
    ],
)
def test_what_follows_from_a_name(
    name: str, commercial: bool | None, derivatives: bool | None
) -> None:
    """NC and ND forbid, free licences allow, and of any other nothing is claimed."""
    licence = named(name)
    assert (licence.commercial, licence.derivatives) == (commercial, derivatives)
