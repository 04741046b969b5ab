"""What `kodolly convert` says in its last lines, without a terminal, and its exit status."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.convert_files import alpaca, write_json

from kodolly_adapters.convert import cli, pool
from kodolly_adapters.convert.output.report import LINES

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_a_folder_mostly_left_aside_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of eight files seven are of no known set: each is named with the reason, and rejected rows with theirs."""
    raw = tmp_path / "raw"
    raw.mkdir()
    write_json(raw / "ko_alpaca_data.json", [*alpaca(3), {"instruction": "왜?", "output": " "}])
    for number in range(7):
        write_json(raw / f"other{number}.json", [{"one": 1, "two": 2}])
    assert cli.main([str(raw), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    said = capsys.readouterr().err
    assert "files read: 1 of 8; rows written: 3" in said
    assert "KoAlpaca (koalpaca): 3 of 4 rows kept in 3 rows; licence: CC BY-NC 4.0" in said
    assert "rejected as empty: 1 rows of koalpaca. A row without" in said
    for number in range(7):
        assert f"not taken: other{number}.json: belongs to no known source: " in said
    assert "has the keys one, two" in said


def test_the_list_of_files_not_taken_is_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of many files names some of them and counts the others."""
    raw = tmp_path / "raw"
    raw.mkdir()
    write_json(raw / "ko_alpaca_data.json", alpaca(3))
    for number in range(LINES + 30):
        (raw / f"{number}.txt").write_text("글\n", encoding="utf-8")
    assert cli.main([str(raw), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    said = capsys.readouterr().err
    assert said.count("not taken: ") == LINES + 1
    assert "not taken: 30 more files" in said


def test_no_row_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file whose every record is rejected ends with status 1, and says so even with --quiet."""
    file = write_json(tmp_path / "own.json", [{"instruction": "왜?", "output": " "}] * 3)
    flags = ["--out", str(tmp_path / "out"), "--jobs", "1", "--quiet"]
    assert cli.main([str(file), *flags]) == 1
    assert "no row was written; " in capsys.readouterr().err
    assert (tmp_path / "out" / "rejected.jsonl").read_bytes().count(b"empty") == 3


def test_nothing_known_is_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of which no file is of a known set is an error that names files and reasons."""
    raw = tmp_path / "raw"
    raw.mkdir()
    write_json(raw / "other.json", [{"one": 1}])
    assert cli.main([str(raw), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 1
    assert "other.json: belongs to no known source" in capsys.readouterr().err


def test_the_input_is_looked_at_before_workers_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray, which starts slowly, is not started for an input of no known set."""

    def start(*arguments: object) -> object:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(pool, "_ray", start)
    file = write_json(tmp_path / "other.json", [{"one": 1}])
    flags = ["--out", str(tmp_path / "out"), "--engine", "ray"]
    assert cli.main([str(file), *flags]) == 1
    assert "other.json: belongs to no known source" in capsys.readouterr().err
