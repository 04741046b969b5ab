"""The access log's lines: what is in them, and that nobody writes a second one."""

import json

import pytest

from kodolly.observe.access_log import AccessLog
from kodolly.observe.requests import Measurement


def measurement() -> Measurement:
    """A streamed answer."""
    result = Measurement()
    result.model, result.worker, result.outcome = "m", "http://w:1", "ok"
    result.first, result.tokens_in, result.tokens_out = result.start + 0.25, 7, 3
    return result


def test_a_line_of_text_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    """With names and units; what is not known is a dash."""
    log = AccessLog("text")
    log.write("POST", "/v1/chat/completions", 200, "id-1", measurement())
    log.write("GET", "/v1/models", 401, "-", Measurement())
    first, second = capsys.readouterr().err.splitlines()
    words = ("method=POST", "path=/v1/chat/completions", "status=200", "request_id=id-1", "model=m")
    more = ("worker=http://w:1", "tokens_in=7", "tokens_out=3", "time_to_first_token_s=0.2500")
    assert {*words, *more, "retries=0", "outcome=ok"} <= set(first.split())
    assert "duration_s=" in first
    assert "status=401" in second
    assert "model=- worker=- tokens_in=- tokens_out=-" in second


def test_json_lines_are_objects_like_those_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line, with numbers as numbers."""
    AccessLog("json").write("POST", "/v1/completions", 200, "id-1", measurement())
    row = json.loads(capsys.readouterr().err)
    assert {"time", "level", "logger", "duration_s"} < set(row)
    assert (row["status"], row["tokens_out"], row["time_to_first_token_s"]) == (200, 3, 0.25)


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_name_cannot_write_a_line_of_its_own(
    style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Model and worker name themselves; control characters in them are escaped."""
    forged = measurement()
    forged.model = "m\n2026-12-01 00:00:00 INFO    kodolly.access: forged\x1b[2J"
    AccessLog(style).write("POST", "/v1/completions", 200, "id-1", forged)
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "\x1b" not in text
