"""A file without records is named for what it is, alone or in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from kodolly import cli
from kodolly_adapters.convert.reading.plan import Plan
from kodolly_adapters.convert.sources import SOURCES

FILES = [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
    (b"\n<!doctype HTML><title>404</title>", "is an HTML page, not the data"),
    (b"<html><body>Not found", "is an HTML page, not the data"),
    (b"", "is empty"),
    (b"\xef\xbb\xbf \n", "holds nothing but white space"),
    (b" [ ]\n", "is an empty list"),
    (b"{}", "is an empty object"),
    (b"[1, 2]", "is a list without records"),
    (b'["a", "b"', "is a list of single values"),
    (b'  [{"instruction" "x"}]', "is not JSON from byte 18 on"),
    ("# 제목\n\n글".encode(), "is text without records"),
    (b"\x89PNG\r\n\x1a\n\0\0\0", "is a binary file"),
    (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z or RAR archive"),
    (b'{"version": "1", "data": []}', "is JSON without records"),
    (b"instruction,output\n", "has a CSV's header and no rows"),
    (b"%PDF-1.7\n", "is a PDF"),
    (b'{"a": 1, "b": 2}\n', "its first record has the keys a, b"),
]


@pytest.mark.parametrize(("data", "what"), FILES)
def test_a_file_is_named_for_what_it_is(
    tmp_path: Path, data: bytes, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with status 1, and says what the file is."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    status = cli.main(["convert", str(path), "--out", str(tmp_path / "out"), "--jobs=1", "--quiet"])
    assert status == 1
    message = capsys.readouterr().err
    assert "rows.jsonl: " in message
    assert what in message


@pytest.mark.parametrize(("data", "what"), FILES)
def test_a_file_of_a_folder_is_listed_for_what_it_is(
    tmp_path: Path, data: bytes, what: str
) -> None:
    """Beside good data it is skipped, with its reason."""
    (tmp_path / "bad.json").write_bytes(data)
    (tmp_path / "good.json").write_bytes(b'[{"instruction": "?", "output": "!"}]')
    plan = Plan([str(tmp_path)], SOURCES)
    assert [shard.file for shard, _ in plan.shards()] == ["good.json"]
    ((name, why),) = plan.skipped
    assert name == "bad.json"
    assert what in why
