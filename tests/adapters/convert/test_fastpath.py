"""The fast scan: it must not show in anything that comes out."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kodolly_adapters.convert.characters import kinds
from kodolly_adapters.convert.fastpath import scan
from kodolly_adapters.convert.fastscan import PLAINLY, TROUBLE
from kodolly_adapters.convert.options import Options
from kodolly_adapters.convert.part import Part
from kodolly_adapters.convert.reading.records import Shard
from kodolly_adapters.convert.shard import SCAN_FROM, convert_shard
from kodolly_adapters.convert.sources import named
from kodolly_adapters.errors import InputError

KOREAN = "한국어로 물어보고 한국어로 답합니다. "
PIECES = st.sampled_from(
    [
        *"가힣A z0\n\t\r:&\"\\/<>`.,'“…·é½ㄱ１　\u00a0\u0085\u2028\u200b\ufeff\u00ad\u0301\u1100\u1161\u11a8\x7f\x1f",
        *("\r\n", "\r\r\n", "&amp;", "&lt", "& b", "&#38;", "e\u0301", "가\u11a8", "😀", "👨‍👩‍👧", "\U0001d15e"),
        *("\U00010000", "\ud800", "Ω", "Å", "が", "か\u3099", "입력 없음", "noinput", "N/A", "```\nx = 1\n```"),
        *(KOREAN, KOREAN * 3, "The quick brown fox jumps over the lazy dog. ", "def f(x): return x\n"),
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=6).map("".join) | st.text(max_size=8)
SPEAKERS = st.sampled_from(["human", "gpt"] * 6 + ["system", "user", "", None, "Human"])
TURNS = st.lists(st.fixed_dictionaries({"from": SPEAKERS, "value": TEXTS | st.none()}), max_size=5)


def _plain_talk(texts: list[str]) -> list[dict[str, str]]:
    return [{"from": "gpt" if i % 2 else "human", "value": text} for i, text in enumerate(texts)]


TALKS = st.fixed_dictionaries(
    {
        "id": TEXTS | st.sampled_from(["a_0", "a_12", "b", 3, None]),
        "conversations": TURNS | st.lists(TEXTS, max_size=6).map(_plain_talk) | st.none(),
    }
)
TASKS = st.fixed_dictionaries(
    {"instruction": TEXTS, "input": TEXTS | st.just(""), "output": TEXTS},
    optional={"id": TEXTS, "url": TEXTS},
)
KINDS = st.sampled_from(["kovicuna", "kovicuna-alpaca", "koalpaca"])
LAYOUTS = st.sampled_from([(None, ", ", ": "), (2, ",", ": "), (None, ",", ":")])


def _shard(source: str, data: bytes, offset: int, *, last: bool = True) -> Shard:
    return Shard(
        key="0", file="가.json", source=source, kind="array", offset=offset, data=data, last=last
    )


def _outcome(part: Part | str) -> Any:
    if isinstance(part, str):
        return part
    index = part.index.copy()
    index["offset"] %= SCAN_FROM
    rejected = [json.loads(line) for line in part.rejected.splitlines()]
    for line in rejected:
        line["byte"] %= SCAN_FROM
    counts = msgspec.to_builtins(part.done.counts)
    return part.rows, part.origins, rejected, index.tobytes(), counts


def _converted(shard: Shard, options: Options) -> Any:
    try:
        return _outcome(convert_shard(shard, options))
    except InputError as error:
        return str(error).replace(str(error.offset), str((error.offset or 0) % SCAN_FROM))


def _same(source: str, data: bytes, options: Options, *, last: bool = True) -> None:
    general = _converted(_shard(source, data, 0, last=last), options)
    assert _converted(_shard(source, data, SCAN_FROM, last=last), options) == general


def _written(records: list[Any], layout: tuple[int | None, str, str], *, escaped: bool) -> bytes:
    indent, comma, colon = layout
    text = json.dumps(records, ensure_ascii=escaped, indent=indent, separators=(comma, colon))
    return text.encode("utf-8", "surrogatepass")[1:]


@given(KINDS, st.data(), LAYOUTS, st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_scanned_and_general_way_agree_to_the_byte(
    source: str, data: st.DataObject, layout: tuple[int | None, str, str], escaped: bool, keep: bool
) -> None:
    """Whatever the records hold, rows, origins, refusals, index and counts are the same both ways."""
    records = data.draw(st.lists(TALKS if source == "kovicuna" else TASKS, min_size=1, max_size=5))
    _same(
        source, _written(records, layout, escaped=escaped), Options(keep_going=keep, validation=0.3)
    )


@pytest.mark.parametrize("name", ['"_0', "\\_0", 'a"b_1', "a\tb_0", "x\ny_12"])
def test_a_name_written_with_escapes_is_the_same_name(name: str) -> None:
    """A conversation's split and its refused rows go by its name, not by how JSON writes it."""
    texts = ["안녕하세요?", "안녕하세요!", "이름이 무엇인가요?", "", "끝인가요?", "네, 끝입니다."]
    records = [{"id": f"{n}{name}", "conversations": _plain_talk(texts)} for n in range(40)]
    options = Options(validation=0.5, provenance=True)
    _same("kovicuna", _written(records, (None, ", ", ": "), escaped=False), options)


@given(KINDS, st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_end_the_same_way(source: str, data: st.DataObject) -> None:
    """A byte changed, put in or taken out gives the same rows or the same error both ways."""
    records = data.draw(st.lists(TALKS if source == "kovicuna" else TASKS, min_size=1, max_size=3))
    written = bytearray(_written(records, (None, ",", ":"), escaped=False))
    at = data.draw(st.integers(0, len(written) - 1))
    written[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    keep = data.draw(st.booleans())
    _same(source, bytes(written), Options(keep_going=keep), last=data.draw(st.booleans()))


@pytest.mark.parametrize(
    "options",
    [
        Options(min_chars=5),
        Options(max_chars=30),
        Options(splits="official"),
        Options(provenance=True),
        Options(rules={"leakage": "off"}),
        Options(rules={"untranslated": "drop", "too-short": "drop", "too-long": "drop"}),
        Options(rules={"nfc": "off", "outer-space": "off", "entities": "count"}),
        Options(rules={"newlines": "count"}),
        Options(rules={"personal-data": "mask"}),
        Options(history=2),
        Options(conversations=True),
        Options(kovicuna_roles="as-written"),
    ],
)
def test_every_option_means_the_same_to_both_ways(options: Options) -> None:
    """Options and rules that the scan does not know of are none of its business, or keep it out."""
    texts = [
        "짧다",
        KOREAN * 3,
        "줄\r\n바꿈",
        "010-1234-5678로 전화 주세요. " * 2,
        "An English answer " * 9,
    ]
    talks = [
        {"id": f"t{n}", "conversations": _plain_talk([KOREAN, text, text, KOREAN])}
        for n, text in enumerate(texts)
    ]
    _same("kovicuna", _written(talks, (2, ",", ": "), escaped=False), options)
    tasks = [{"instruction": KOREAN, "input": text, "output": text} for text in texts]
    _same("koalpaca", _written(tasks, (None, ",", ":"), escaped=False), options)


def test_plain_records_are_really_scanned() -> None:
    """Ordinary Korean with quotes, line ends, marks and pictographs needs no second look."""
    text = '"네, 그렇습니다…"\r\n- 첫째: A & B 😀\n- 둘째\t(２)'
    talks = [{"id": f"t_{n}", "conversations": _plain_talk([KOREAN + "?", text])} for n in range(3)]
    data = _written(talks, (2, ",", ": "), escaped=False)
    source = named("kovicuna")
    assert source is not None
    shard = _shard("kovicuna", data, SCAN_FROM)
    found = scan(shard, source, Options(), b"{")
    assert found is not None
    assert found.records[:, PLAINLY].tolist() == [1, 1, 1]
    assert (len(found.rows), found.drafts, found.newlines()) == (3, {}, 3)
    line = bytes(found.lines[: found.rows[0, 1]])
    assert json.loads(line)["response"] == text.replace("\r\n", "\n")


def test_what_the_scan_takes_for_plain_stays_in_nfc() -> None:
    """No two characters that the scan passes compose, and each is composed itself."""
    plain = [chr(code) for code in np.flatnonzero(kinds() != TROUBLE)]
    random = np.random.default_rng(7)
    for _ in range(200):
        text = "".join(random.permutation(plain)[:5000])
        assert unicodedata.is_normalized("NFC", text)
