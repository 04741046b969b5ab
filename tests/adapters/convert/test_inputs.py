"""Where bytes come from: files, folders, zips, gz, zst, standard input, and their faults."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import subprocess
import sys
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from backports import zstd

from kodolly import cli
from kodolly_adapters.convert.reading.inputs import Member, Stream, members, open_member
from kodolly_adapters.convert.reading.plan import Plan
from kodolly_adapters.convert.sources import BY_NAME, SOURCES
from kodolly_adapters.errors import InputError

TEXT = '[{"instruction": "가"}]'.encode() * 5000


def whole(member: Member) -> bytes:
    with open_member(member) as stream:
        parts = []
        while data := stream.peek(1000):
            parts.append(data)
            stream.skip(len(data))
        return b"".join(parts)


def all_of(*arguments: Path) -> dict[str, bytes]:
    return {member.name: whole(member) for member in members([str(a) for a in arguments])}


def write_zip(path: Path, **files: bytes) -> Path:
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
    write_zip(path, **{"b.json": TEXT, "a.json": b"[]", "__MACOSX/a.json": b"x", ".hidden": b"x"})
    assert all_of(path) == {f"{name}!a.json": b"[]", f"{name}!b.json": TEXT}


def test_a_stream_shows_again_what_was_not_skipped() -> None:
    """Bytes come once however they are asked for, and size and hash are those of the bytes gone past."""
    data = bytes(range(200))
    sizes: list[int] = []
    stream = Stream("f", io.BytesIO(data), sizes.append)
    assert stream.peek(50) == data[:50]
    assert stream.peek(120) == data[:120]
    assert stream.peek(10) == data[:10]
    stream.skip(70)
    assert (stream.size, stream.sha256.digest()) == (70, hashlib.sha256(data[:70]).digest())
    assert stream.peek(300) == data[70:]
    stream.skip(130)
    assert (stream.peek(5), sum(sizes)) == (b"", 200)
    assert stream.sha256.digest() == hashlib.sha256(data).digest()


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    """Files below a folder come sorted by their path in it; hidden ones are left out."""
    for name in ("b/2.json", "a.json", "b/10.json", ".git/x.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    write_zip(tmp_path / "c.zip", **{"d.json.gz": gzip.compress(TEXT)})
    assert list(all_of(tmp_path)) == ["a.json", "b/10.json", "b/2.json", "c.zip!d.json.gz"]
    assert all_of(tmp_path)["c.zip!d.json.gz"] == TEXT


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress], ids=["plain", "gz", "zst"])
@pytest.mark.usefixtures("no_pictures")
def test_standard_input_is_a_source(
    tmp_path: Path,
    pack: Callable[[bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`kodolly convert -` reads standard input, and unpacks it where it is compressed."""
    record = {"instruction": "가?", "output": "나."}
    read, write = os.pipe()
    with os.fdopen(write, "wb") as pipe:  # few enough bytes for the pipe to take at once
        pipe.write(pack(json.dumps([record] * 3).encode()))
    with os.fdopen(read, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        status = cli.main(
            ["convert", "-", "--out", str(tmp_path / "out"), "--validation=0", "--jobs=1"]
        )
    assert (status, capsys.readouterr().out) == (0, f"{tmp_path / 'out'}\n")
    lines = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["response"] for line in lines] == ["나."] * 3


def test_a_zip_on_standard_input_is_refused(tmp_path: Path) -> None:
    """A zip cannot be read from a pipe; the error says to give its path."""
    result = convert_stdin(tmp_path / "out", b"PK\x03\x04rest")
    assert result.returncode == 1
    assert b"standard input: " in result.stderr
    assert b"give its path" in result.stderr


def convert_stdin(out: Path, data: bytes) -> subprocess.CompletedProcess[bytes]:
    """`kodolly convert - --out OUT` with `data` on standard input; all rows go to the train split."""
    command = [sys.executable, "-m", "kodolly", "convert", "-", "--out", str(out)]
    command += ["--validation", "0"]
    return subprocess.run(command, input=data, capture_output=True, timeout=120, check=False)


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
        write_zip(path, **{"rows.json": noise})
        data = bytearray(path.read_bytes())
        data[50_000:50_100] = b"\0" * 100
        path.write_bytes(data)
    else:
        stream = gzip.compress(noise) if kind == "gz" else zstd.compress(noise)
        path.write_bytes(stream[:-20_000])
    with pytest.raises(InputError, match=rf"rows\.{kind}.*byte \d+: cannot be read on"):
        all_of(path)


def test_all_before_a_cut_is_read_and_counted(tmp_path: Path) -> None:
    """The byte named is the last one that can be had, however much is asked for at once."""
    packed_text = gzip.compress(random.Random(1).randbytes(500_000))[:300_000]
    intact = len(zlib.decompressobj(31).decompress(packed_text))
    path = tmp_path / "rows.gz"
    path.write_bytes(packed_text)
    with (
        open_member(next(iter(members([str(path)])))) as stream,
        pytest.raises(InputError, match=rf"rows\.gz: byte {intact}: cannot be read on"),
    ):
        stream.peek(4 << 20)


def test_a_broken_zip_is_named(tmp_path: Path) -> None:
    """A zip without its directory of members cannot be opened, and says so, and where it ends."""
    path = write_zip(tmp_path / "rows.zip", **{"rows.json": TEXT})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"rows\.zip: byte 200: is a broken zip"):
        all_of(path)


def test_two_members_of_one_name_are_two_files(tmp_path: Path) -> None:
    """A zip may hold a name twice: both are read, and told apart."""
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("a.jsonl", b"first")
        archive.writestr("a.jsonl", b"second")
    assert all_of(path) == {"rows.zip!a.jsonl": b"first", "rows.zip!a.jsonl (2)": b"second"}


def test_files_of_several_arguments_are_told_apart(tmp_path: Path) -> None:
    """Files of two folders bear the folder's name; two plain files of one name are numbered."""
    for folder in "AB":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dolly.jsonl").write_bytes(folder.encode())
    a, b = tmp_path / "A", tmp_path / "B"
    assert all_of(a, b) == {"A/dolly.jsonl": b"A", "B/dolly.jsonl": b"B"}
    assert all_of(a / "dolly.jsonl", b / "dolly.jsonl") == {
        "dolly.jsonl": b"A",
        "dolly.jsonl (2)": b"B",
    }
    assert list(all_of(a)) == ["dolly.jsonl"]


@pytest.mark.parametrize("files", [["convert.json", "dataset_card.md"], [".work/lock"]])
def test_what_a_conversion_wrote_is_not_read_back(tmp_path: Path, files: list[str]) -> None:
    """A folder below SOURCE with our own rows, finished or not, is skipped and listed as that."""
    row = b'{"instruction": "?", "context": "", "response": "!", "category": "open_qa"}\n'
    for name in ["dolly.jsonl", *(f"out/{file}" for file in [*files, "train.jsonl"])]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(row)
    plan = Plan([str(tmp_path)], SOURCES)
    assert [shard.file for shard, _ in plan.shards()] == ["dolly.jsonl"]
    assert plan.skipped == [("out", "is a conversion's output")]


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    """A named pipe, as the shell's <(command) is one, loses no byte, packed or not."""
    for data in (TEXT, gzip.compress(TEXT)):
        pipe = tmp_path / f"pipe{len(data)}"
        os.mkfifo(pipe)
        writer = threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True)
        writer.start()
        assert all_of(pipe) == {pipe.name: TEXT}
        writer.join(5)


LACKS = "does not hold what files of koalpaca do: its columns are Dear reader, hello"


def test_a_source_named_does_not_swallow_text(tmp_path: Path) -> None:
    """--source goes with files of that source's layout; a text with a comma in its first line is no table of it."""
    (tmp_path / "LICENSE.txt").write_bytes(b"Dear reader, hello\nthis, too, is no data\n")
    (tmp_path / "rows.json").write_bytes(b'[{"instruction": "?", "output": "!"}]')
    plan = Plan([str(tmp_path)], SOURCES, BY_NAME["koalpaca"])
    assert [shard.file for shard, _ in plan.shards()] == ["rows.json"]
    assert plan.skipped == [("LICENSE.txt", LACKS)]
    plan = Plan([str(tmp_path / "LICENSE.txt")], SOURCES, BY_NAME["kovicuna"])
    with pytest.raises(InputError, match="does not hold what files of kovicuna do"):
        list(plan.shards())


BIG = "\uac00" * 500_000  # 1.5 MB


@pytest.mark.parametrize(
    ("data", "source", "kind"),
    [
        ([{"id": "a", "conversations": [{"from": "human", "value": BIG}]}], "dialogues", "array"),
        ([{"instruction": BIG, "output": "x"}] * 2, "alpaca", "lines"),
        ([{"instruction": BIG, "output": "x"}], "alpaca", "lines"),
        ([{"instruction": BIG, "context": BIG, "response": BIG}] * 2, "dolly", "array"),
    ],
)
def test_a_first_record_longer_than_the_head_is_recognised(
    tmp_path: Path, data: list[object], source: str, kind: str
) -> None:
    """However long the first record is, it is read whole before a file is judged."""
    path = tmp_path / "rows"
    lines = kind == "lines"
    texts = [json.dumps(one, ensure_ascii=False) for one in data]
    path.write_text("\n".join(texts) if lines else "[" + ",".join(texts) + "]")
    shards = [shard for shard, _ in Plan([str(path)], SOURCES).shards()]
    assert {(shard.source, shard.kind) for shard in shards} == {(source, kind)}
    data_of_all = b"".join(shard.data for shard in shards)
    assert data_of_all == path.read_bytes()[0 if lines else 1 :]


def test_a_broken_first_line_does_not_hide_a_file(tmp_path: Path) -> None:
    """JSONL is recognised by a later line where the first is no JSON."""
    path = tmp_path / "rows.jsonl"
    good = b'{"instruction": "?", "output": "!"}\n'
    path.write_bytes(b'{"instruction": "?", "out\n' + good * 3)
    assert [(s.source, s.kind) for s, _ in Plan([str(path)], SOURCES).shards()] == [
        ("alpaca", "lines")
    ]


def pack(kind: str, data: bytes) -> bytes:
    if kind == "gz":
        return gzip.compress(data, mtime=0)
    if kind == "zst":
        return zstd.compress(data)
    method = {"zip": zipfile.ZIP_DEFLATED, "lzma": zipfile.ZIP_LZMA, "bz2": zipfile.ZIP_BZIP2}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method[kind]) as archive:
        archive.writestr("\uac00.json", data)
        archive.writestr("b.json", data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("field", "value"),
    [("flags", 1), ("method", 9), ("method", 99), ("version", 99), ("name", 0xFF)],
)
def test_a_zip_that_cannot_be_unpacked_is_named(tmp_path: Path, field: str, value: int) -> None:
    """Encrypted members, Deflate64 and other methods, later versions and damaged names are no traceback."""
    data = bytearray(pack("zip", TEXT))
    local = {"flags": 6, "method": 8, "version": 4, "name": 30}[field]
    central = {"flags": 8, "method": 10, "version": 6, "name": 46}[field]
    data[local] = value
    data[data.index(b"PK\x01\x02") + central] = value
    path = tmp_path / "rows.zip"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"rows\.zip"):
        all_of(path)


@pytest.mark.parametrize("kind", ["zip", "lzma", "bz2", "gz", "zst"])
def test_a_damaged_container_is_read_or_named(tmp_path: Path, kind: str) -> None:
    """Whatever byte of a packed file is changed, it is read or refused by name."""
    chance = random.Random(kind)
    whole_file = pack(kind, TEXT[:300])
    path = tmp_path / f"rows.{kind}"
    for _ in range(300):
        data = bytearray(whole_file)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(len(data))] = chance.choice(
                [0, 1, 9, 0x7F, 0xFF, chance.randrange(256)]
            )
        path.write_bytes(data[: chance.choice([len(data), len(data), chance.randrange(len(data))])])
        with suppress(InputError):  # InputError alone, which cannot be made without a name
            all_of(path)
