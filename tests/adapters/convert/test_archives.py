"""Tars and packed files: read whatever they are called, bounded, and nothing outside of them is followed."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from support.child_memory import PEAK_MIB

from kodolly_adapters.convert.reading import packing
from kodolly_adapters.convert.reading.inputs import members, open_member
from kodolly_adapters.convert.reading.plan import Plan
from kodolly_adapters.convert.sources import SOURCES
from kodolly_adapters.errors import InputError

TEXT = '[{"instruction": "가?", "output": "나."}]'.encode() * 3000
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}


def all_of(path: Path) -> dict[str, bytes]:
    """What every member under `path` holds, skipped ones as their reason."""
    texts = {}
    for member in members([str(path)]):
        if member.skip_reason:
            texts[member.name] = member.skip_reason.encode()
            continue
        with open_member(member) as stream:
            texts[member.name] = stream.peek(10_000_000)
            stream.skip(len(texts[member.name]))
    return texts


def tar(files: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in others:
            archive.addfile(info)
    return out.getvalue()


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_packed_file_is_known_by_its_bytes(tmp_path: Path, kind: str) -> None:
    """bz2, xz and the others are unpacked whatever they are called, also two frames in a row."""
    path = tmp_path / "rows.json"
    pack = PACKINGS[kind]
    path.write_bytes(pack(TEXT[:999]) + pack(TEXT[999:]))
    assert all_of(path) == {"rows.json": TEXT}


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_tar_is_read_as_its_members(tmp_path: Path, kind: str) -> None:
    """The files of a tar, packed or not, are named after it; hidden ones and folders are left out."""
    folder = tarfile.TarInfo("./sub")
    folder.type = tarfile.DIRTYPE
    files = {"./b.jsonl": TEXT, "sub/a.jsonl.gz": gzip.compress(b"[]"), "._b.jsonl": b"x"}
    path = tmp_path / "all.bin"
    path.write_bytes(PACKINGS[kind](tar(files, folder)))
    assert all_of(path) == {"all.bin!b.jsonl": TEXT, "all.bin!sub/a.jsonl.gz": b"[]"}


def test_links_and_devices_in_a_tar_are_named_and_not_followed(tmp_path: Path) -> None:
    """A link to a file of this machine gives none of its bytes, and the card lists it."""
    secret = tmp_path / "secret.jsonl"
    secret.write_bytes(b'{"instruction": "?", "output": "secret"}\n')
    odd = [tarfile.TarInfo(name) for name in ("soft", "hard", "device", "pipe")]
    types = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    for info, kind in zip(odd, types, strict=True):
        info.type, info.linkname = kind, str(secret)
    path = tmp_path / "rows.tar"
    path.write_bytes(tar({"a.jsonl": b'{"instruction": "?", "output": "!"}\n'}, *odd))
    plan = Plan([str(path)], SOURCES)
    assert [shard.file for shard, _ in plan.shards()] == ["rows.tar!a.jsonl"]
    reasons = dict(plan.skipped)
    assert set(reasons) == {f"rows.tar!{info.name}" for info in odd}
    assert all("link" in reasons[f"rows.tar!{name}"] for name in ("soft", "hard"))
    assert all("device or pipe" in reasons[f"rows.tar!{name}"] for name in ("device", "pipe"))


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_tar_cut_short_is_named(tmp_path: Path, kind: str) -> None:
    """Half a tar is no whole one, wherever the cut is."""
    data = PACKINGS[kind](tar({"a.jsonl": TEXT, "b.jsonl": TEXT[::-1]}))
    path = tmp_path / "rows.tar"
    for share in (0.3, 0.6, 0.8):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InputError, match=r"rows\.tar"):
            all_of(path)


def test_a_tar_may_be_read_in_any_order(tmp_path: Path) -> None:
    """Going back in a packed tar begins again at its front and gives the same bytes."""
    path = tmp_path / "rows.tgz"
    path.write_bytes(gzip.compress(tar({"a": TEXT, "b": TEXT[::-1]})))
    both = list(members([str(path)]))
    for member in (*reversed(both), *both):
        with open_member(member) as stream:
            assert stream.peek(10**7) == (TEXT if member.name.endswith("a") else TEXT[::-1])


HUGE_HEADER = """
import gzip, sys, tarfile
info = tarfile.TarInfo("a")
info.type, info.size = tarfile.XHDTYPE, 8 << 30
with gzip.open(sys.argv[1], "wb", 1) as out:
    out.write(info.tobuf(tarfile.GNU_FORMAT))
    for _ in range(700):
        out.write(bytes(1 << 20))
from kodolly_adapters.convert.reading.inputs import members
from kodolly_adapters.errors import InputError
try:
    list(members([sys.argv[1]]))
except InputError as error:
    print(error)
print(peak_mib())
"""


def test_a_tar_header_of_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    """A member's name or attributes of any size, which a few kilobytes can unpack to, are refused."""
    command = [sys.executable, "-c", PEAK_MIB + HUGE_HEADER, str(tmp_path / "bomb.tgz")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    message, megabytes = run.stdout.splitlines()
    assert "bomb.tgz" in message
    assert "is a broken tar" in message
    assert int(megabytes) < 300


def test_an_xz_that_asks_for_much_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window that an xz file declares is bounded; `xz -9`, the largest preset, stays readable."""
    path = tmp_path / "rows.xz"
    path.write_bytes(lzma.compress(TEXT, preset=9))
    assert all_of(path) == {"rows.xz": TEXT}
    monkeypatch.setattr(packing, "XZ_MEMORY", 32 << 20)
    with pytest.raises(InputError, match=r"rows\.xz.*[Mm]emory"):
        all_of(path)


def test_an_archive_in_an_archive_is_named(tmp_path: Path) -> None:
    """It is not taken for text: the error says to unpack it."""
    path = tmp_path / "rows.tar"
    path.write_bytes(tar({"inner.tar.gz": gzip.compress(tar({"a.jsonl": TEXT}))}))
    with pytest.raises(InputError, match=r"rows\.tar!inner\.tar\.gz: is an archive .* unpack it"):
        list(Plan([str(path)], SOURCES).shards())


def test_a_readme_in_an_archive_is_skipped_as_in_a_folder(tmp_path: Path) -> None:
    """An archive given as SOURCE is read although not all of its files are data; those that are not are named."""
    path = tmp_path / "set.tar"
    path.write_bytes(tar({"README.md": b"About this set.\n", "rows.json": TEXT}))
    plan = Plan([str(path)], SOURCES)
    assert {shard.file for shard, _ in plan.shards()} == {"set.tar!rows.json"}
    assert [name for name, _ in plan.skipped] == ["set.tar!README.md"]


def test_an_archive_without_data_is_refused_with_its_files(tmp_path: Path) -> None:
    """It names what is in the archive, and why none of it was taken."""
    path = tmp_path / "set.tar"
    path.write_bytes(tar({"README.md": b"About this set.\n"}))
    with pytest.raises(InputError, match=r"set\.tar!README\.md: is text without records"):
        list(Plan([str(path)], SOURCES).shards())
