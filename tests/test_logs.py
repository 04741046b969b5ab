"""What a log line may hold: nothing that a client wrote ends a line or steers a terminal."""

import json
import logging
from collections.abc import Iterator

import pytest

from kodolly import cli, logs
from kodolly.errors import KodollyError

FORGED = "x\n2026-01-01 00:00:00 ERROR   kodolly: forged\x1b[2J\x9b31m\u2028\u202egnp\ud800"
ESCAPED = "x\\n2026-01-01 00:00:00 ERROR   kodolly: forged\\x1b[2J\\x9b31m\\u2028\\u202egnp\\ud800"


@pytest.fixture
def restored() -> Iterator[None]:
    """The root logger as it was: `configure` is for a whole process."""
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("style", ["text", "json"])
def test_control_characters_are_escaped_in_message_and_traceback(
    style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One record is one line; a traceback's lines cannot be taken for lines of the log."""
    logs.configure("info", style)
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("kodolly.api").exception("model %s", FORGED)

    lines = capsys.readouterr().err.splitlines()
    if style == "json":
        (line,) = lines
        row = json.loads(line)
        assert row["message"] == f"model {ESCAPED}"
        assert (
            row["traceback"]
            .splitlines()[-1]
            .endswith("forged\\x1b[2J\\x9b31m\\u2028\\u202egnp\\ud800")
        )
    else:
        assert lines[0].endswith(f"ERROR   kodolly.api: model {ESCAPED}")
        assert all(line.startswith("    ") for line in lines[1:])
        assert "forged" in lines[-1]
    assert not any(character in "".join(lines) for character in "\x1b\x9b\u2028\u202e")


def test_text_that_is_safe_stays_as_it_is() -> None:
    """Korean, emoji and quotes are no control characters; escaping twice changes nothing."""
    assert logs.escape_controls("안녕하세요 🙂 'a' \\n") == "안녕하세요 🙂 'a' \\n"
    assert logs.escape_controls(ESCAPED) == ESCAPED
    assert logs.escape_lines("a\nb\x1b") == "a\nb\\x1b"


def test_an_error_at_the_terminal_is_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file's text may stand in it."""

    def fail(_: list[str]) -> int:
        raise KodollyError("bad \x1b]0;title\x07")

    monkeypatch.setattr(cli, "_command", lambda _: fail)

    assert cli.main(["up"]) == 1
    assert capsys.readouterr().err == "kodolly up: bad \\x1b]0;title\\x07\n"


def test_what_clients_bring_about_at_will_is_logged_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty-one faults in ten seconds are two lines, and the second one counts the others."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    log = logging.getLogger("seldom")
    log.addFilter(logs.Seldom(10))
    for _ in range(21):
        log.warning("odd %s", "call")
        now += 0.5
    assert caplog.messages == ["odd call", "odd call (19 lines like it were left out)"]
