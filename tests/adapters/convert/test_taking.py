"""Bytes of a file by place: the same from a stream and from a file, and noticed when they change."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
from support.convert_files import alpaca

from kodolly_adapters.convert.reading import plan
from kodolly_adapters.convert.reading.plan import Plan
from kodolly_adapters.convert.taking import Held, Measured, filled
from kodolly_adapters.errors import InputError


def test_a_stream_gives_again_what_it_gave_last() -> None:
    """Bytes once given can be asked for from a later place, in larger and in smaller shares."""
    data = bytes(range(200))
    held = Held(io.BytesIO(data).read)
    asked = [(0, 50), (0, 120), (0, 10), (7, 20), (100, 60), (150, 100), (200, 5)]
    for offset, size in asked:
        assert held.take(offset, size) == data[offset : offset + size]


def test_bytes_taken_twice_are_hashed_once() -> None:
    """The size and the hash are the file's, however its shares overlap."""
    data = bytes(range(200))
    told: list[int] = []
    with Measured(Held(io.BytesIO(data).read).take, told.append) as measured:
        for offset, size in [(0, 50), (0, 120), (0, 30), (30, 100), (130, 100)]:
            measured.take(offset, size)
    assert (measured.size, sum(told)) == (200, 200)
    assert measured.sha256 == hashlib.sha256(data).hexdigest()


def test_a_file_that_changes_before_a_worker_reads_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker takes the bytes its parent saw, or says which file has changed and where."""
    monkeypatch.setattr(plan, "PIECE", 900)
    path = tmp_path / "ko_alpaca_data.json"
    text = json.dumps(alpaca(40), ensure_ascii=False).encode()
    path.write_bytes(text)
    shards = list(Plan([str(path)]).shards())
    assert b"".join(filled(shard).data for shard in shards) == text[1:]
    path.write_bytes(text[:-10] + b"x" + text[-9:])
    assert filled(shards[0]).data
    with pytest.raises(InputError, match=r"ko_alpaca_data\.json.*has changed"):
        filled(shards[-1])
