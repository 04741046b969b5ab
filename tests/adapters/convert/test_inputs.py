"""Where bytes come from: files, folders, zips, gz, zst, standard input, and their faults."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path

import pytest
from backports import zstd

from kodolly_adapters.convert.errors import InputError
from kodolly_adapters.convert.inputs import Member, members, reading

TEXT = '[{"instruction": "가"}]'.encode() * 5000


def whole(member: Member) -> bytes:
    with reading(member) as read:
        parts = []
        while data := read(1000):
            parts.append(data)
        return b"".join(parts)


def all_of(*arguments: Path) -> dict[str, bytes]:
    return {member.name: whole(member) for member in members([str(a) for a in arguments])}


def zipped(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["rows.json", "rows.gz", "misleading.txt"])
def test_a_container_is_known_by_its_bytes(tmp_path: Path, name: str) -> None:
    """gz, zst and zip are unpacked whatever they are called; two frames in a row are one stream."""
    path = tmp_path / name
    path.write_bytes(gzip.compress(TEXT))
    assert all_of(path) == {name: TEXT}
    frames = zstd.compress(TEXT[:999]) + zstd.compress(TEXT[999:])
    path.write_bytes(frames)
    assert all_of(path) == {name: TEXT}
    zipped(path, **{"b.json": TEXT, "a.json": b"[]", "__MACOSX/a.json": b"x", ".hidden": b"x"})
    assert all_of(path) == {f"{name}!a.json": b"[]", f"{name}!b.json": TEXT}


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    """Files below a folder come sorted by their path in it; hidden ones are left out."""
    for name in ("b/2.json", "a.json", "b/10.json", ".git/x.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    zipped(tmp_path / "c.zip", **{"d.json.gz": gzip.compress(TEXT)})
    assert list(all_of(tmp_path)) == ["a.json", "b/10.json", "b/2.json", "c.zip!d.json.gz"]
    assert all_of(tmp_path)["c.zip!d.json.gz"] == TEXT


def test_standard_input_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """`-` reads standard input, unpacked where it is compressed; a zip there is refused with advice."""

    class Input:
        buffer = io.BufferedReader(io.BytesIO(gzip.compress(TEXT)))

    monkeypatch.setattr("sys.stdin", Input)
    assert [whole(member) for member in members(["-"])] == [TEXT]
    Input.buffer = io.BufferedReader(io.BytesIO(b"PK\x03\x04rest"))
    with pytest.raises(InputError, match="give its path"):
        whole(next(iter(members(["-"]))))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The error holds the argument as it was given."""
    with pytest.raises(InputError, match=r"nowhere\.json: there is no such file"):
        all_of(tmp_path / "nowhere.json")


@pytest.mark.parametrize("kind", ["gz", "zst", "zip"])
def test_a_stream_cut_short_names_the_byte_reached(tmp_path: Path, kind: str) -> None:
    """A truncated download stops with the file and an offset, never as if it had ended well."""
    noise = os.urandom(100_000)
    path = tmp_path / f"rows.{kind}"
    if kind == "zip":
        zipped(path, **{"rows.json": noise})
        data = bytearray(path.read_bytes())
        data[50_000:50_100] = b"\0" * 100
        path.write_bytes(data)
    else:
        packed = gzip.compress(noise) if kind == "gz" else zstd.compress(noise)
        path.write_bytes(packed[:-20_000])
    with pytest.raises(InputError, match=rf"rows\.{kind}.*byte \d+: cannot be read on"):
        all_of(path)


def test_a_broken_zip_is_named(tmp_path: Path) -> None:
    """A zip without its directory of members cannot be opened, and says so."""
    path = zipped(tmp_path / "rows.zip", **{"rows.json": TEXT})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"rows\.zip: is a broken zip"):
        all_of(path)
