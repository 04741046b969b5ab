"""Logging: one line for each event on standard error, as text or JSON. Never prompts or answers.

What a client, an engine or a file said may stand in a message. Its control characters are escaped here,
in the one handler of each process: nobody else can write a line of the log, or move a terminal's cursor.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time

TIME = "%Y-%m-%d %H:%M:%S"
TRACEBACK_INDENT = "    "  # no line of a traceback looks like one of the log
# Control characters, ends of lines that only some programs know, marks that turn the direction of
# writing, and halves of UTF-16 pairs, which no file can hold.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def escape_controls(text: str) -> str:
    """`text` as one line that is safe to show: control characters are written as `\\n` or `\\x1b`.

    Escaping twice changes nothing more.
    """
    return text if text.isprintable() else _UNSAFE.sub(_escaped, text)


def escape_lines(text: str) -> str:
    """The same for text of several lines: its newlines stay."""
    return "\n".join(map(escape_controls, text.split("\n")))


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")


class TextFormatter(logging.Formatter):
    """One line of text for each record: time, level, logger, message. A traceback follows, indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s", TIME)

    def format(self, record: logging.LogRecord) -> str:
        record.message = record.getMessage()
        record.asctime = self.formatTime(record, self.datefmt)
        lines = [escape_controls(self.formatMessage(record))]
        if record.exc_info:
            trace = self.formatException(record.exc_info).split("\n")
            lines += [TRACEBACK_INDENT + escape_controls(line) for line in trace]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record: time, level, logger, message, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": escape_controls(record.getMessage()),
        }
        if record.exc_info:
            row["traceback"] = escape_lines(self.formatException(record.exc_info))
        return json.dumps(row, ensure_ascii=False)


class Seldom(logging.Filter):
    """For a logger whose lines clients bring about at will: one in so many seconds, and how many were left out."""

    def __init__(self, seconds: float = 10.0) -> None:
        super().__init__()
        self._seconds = seconds
        self._next = 0.0  # time of the next line, by the monotonic clock
        self._left_out = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged."""
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return False
        if self._left_out:
            record.msg = f"{record.getMessage()} ({self._left_out} lines like it were left out)"
            record.args = None
        self._next, self._left_out = now + self._seconds, 0
        return True


def configure(level: str, style: str) -> None:
    """Sets up all logging. `level`: debug, info or warning. `style`: text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("uvicorn.access", "httpx", "httpx2", "httpcore", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Its warnings are about bytes that are no HTTP: one line for each would let strangers fill the log.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
