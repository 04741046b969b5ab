"""The hostile benchmark's own judgement: its cases, its bars, and what it calls a failure."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loader of the benchmark's modules: benchmarks/ is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"benchmarks.hostile.{name}")

    return load


def test_the_same_number_is_always_the_same_case(hostile: Any) -> None:
    """And the cases differ from one another, and between processes."""
    raw = hostile("raw")
    target = raw.Target("api", "127.0.0.1", 1, ("/health",), ("/v1/completions",), "key")
    cases = [raw.case(target, number, 13) for number in range(300)]
    assert cases == [raw.case(target, number, 13) for number in range(300)]
    assert len(set(cases)) > 200
    assert cases[0] != raw.case(target, 0, 14)
    sample = b"".join(cases)
    for part in (b"chunked", b"PRI *", b"Content-Length: -1", b"[[[[", b"HTTP/9.9", b"Bearer key"):
        assert part in sample


def test_an_error_without_a_reason_is_counted(hostile: Any) -> None:
    """A 500, or a 503 that does not say what is full; not one that does."""
    result = hostile("attack").Result()
    result.note("api", b"HTTP/1.1 500 Internal Server Error\r\n\r\n", b"GET /")
    result.note("api", b'HTTP/1.1 503 X\r\n\r\n{"code":"too_many_connections"}', b"GET /")
    result.note("api", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"GET /")
    result.note("api", b"", b"GET /")
    assert result.unstated == {"api 500": 1}
    assert result.statuses == {"500": 1, "503": 1, "400": 1, "none": 1}
    assert len(result.examples) == 1


def phase(hostile: Any, name: str, milliseconds: int, **values: Any) -> Any:
    given = {"failures": [], "grown": {"api": 0}, "attack": {}} | values
    first_tokens = [milliseconds / 1000] * 100
    return hostile("report").Phase(name, 1.0, first_tokens, **given)


@pytest.mark.parametrize(
    ("values", "milliseconds", "words"),
    [
        ({}, 400, ""),
        ({}, 401, "first token p99 401 ms"),
        ({"grown": {"api": 20 * MIB + 1}}, 200, "api grew by 20.0 MiB"),
        ({"failures": ["ClientError: gone"]}, 200, "1 honest streams failed: ClientError"),
        ({"attack": {"unstated": {"web 500": 3}}}, 200, "3 x web 500"),
    ],
)
def test_each_bar_is_judged(hostile: Any, values: Any, milliseconds: int, words: str) -> None:
    """A run within all bars has no faults; one beyond a bar has one that names it."""
    report = hostile("report")
    phases = [phase(hostile, "quiet", 200), phase(hostile, "raw", milliseconds, **values)]
    run = report.Run("head", phases, {"api": 0})
    faults = run.faults()
    assert len(faults) == bool(words)
    assert words in "".join(faults)
    assert (faults[0] if faults else "every bar was kept") in report.text(run)
    assert report.Run("head", phases[:1], {}, ["api"]).faults() == ["api has ended"]


def test_percentiles(hostile: Any) -> None:
    """The smallest value that at least so many are not above."""
    percentile = hostile("report").percentile
    assert percentile([float(n) for n in range(1, 101)], 0.99) == 99
    assert percentile([5.0], 0.5) == 5
    assert percentile([], 0.99) == float("inf")
