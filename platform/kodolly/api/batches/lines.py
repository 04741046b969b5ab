"""The input of a batch: one request a line, checked before the first is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from kodolly.errors import ApiError, BadRequest
from kodolly.http.bounds import load_json
from kodolly.store.batches import BatchLine

MAX_LINES = 50_000
MAX_ERRORS = 20  # reported; the rest are likely of the same kind
MAX_CUSTOM_ID = 512  # characters
AT_ONCE = 50  # lines between two turns of the event loop

Check = Callable[[dict[str, Any]], None]


class BadInput(Exception):
    """The input cannot be used; `errors` in the form of a batch's."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(errors[0]["message"])
        self.errors = errors


async def read_lines(
    parts: AsyncIterator[bytes], endpoint: str, check: Check, max_line: int
) -> list[BatchLine]:
    """The requests of an input file. Raises BadInput, which names the lines at fault.

    `check`: of a request's body, raises ApiError. `max_line`: bytes.
    """
    lines: list[BatchLine] = []
    errors: list[dict[str, Any]] = []
    names: set[str] = set()
    number = 0
    async for text in _split(parts, max_line):
        number += 1
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
        if not text.strip():
            continue
        try:
            line = _line(number, text, endpoint, check, max_line)
            if line.custom_id in names:
                raise BadRequest(f"custom_id {line.custom_id!r} occurs twice", param="custom_id")
            if len(lines) >= MAX_LINES:
                raise BadRequest(f"a batch has at most {MAX_LINES} requests")
        except ApiError as error:
            errors.append(
                {
                    "code": error.code or "invalid_request",
                    "line": number,
                    "message": error.message,
                    "param": error.param,
                }
            )
            if len(errors) >= MAX_ERRORS or len(lines) >= MAX_LINES:
                break
        else:
            names.add(line.custom_id)
            lines.append(line)
    if not lines and not errors:
        errors = [{"code": "empty_file", "line": None, "message": "the file has no request"}]
    if errors:
        raise BadInput(errors)
    return lines


async def _split(parts: AsyncIterator[bytes], max_line: int) -> AsyncIterator[bytes]:
    """The lines of a file that comes in parts; one that is too long is cut, and refused by its size."""
    rest = b""
    async for part in parts:
        *whole, rest = (rest + part).split(b"\n")
        for line in whole:
            yield line
        rest = rest[: max_line + 1]
    if rest:
        yield rest


def _line(number: int, text: bytes, endpoint: str, check: Check, max_line: int) -> BatchLine:
    """One request. Raises ApiError."""
    if len(text) > max_line:
        raise BadRequest(f"the line has more than {max_line} bytes")
    data = load_json(text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text)
    if not isinstance(data, Mapping):
        raise BadRequest("the line must be a JSON object")
    name, body = data.get("custom_id"), data.get("body")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_CUSTOM_ID or "\0" in name:
        raise BadRequest(
            f"custom_id must be a text of 1 to {MAX_CUSTOM_ID} characters", param="custom_id"
        )
    if data.get("method") != "POST":
        raise BadRequest("method must be POST", param="method")
    if data.get("url") != endpoint:
        raise BadRequest(f"url must be the batch's endpoint, {endpoint}", param="url")
    if not isinstance(body, dict):
        raise BadRequest("body must be a JSON object", param="body")
    if body.get("stream"):
        raise BadRequest("a batch does not stream", param="stream")
    check(body)
    return BatchLine(number, name, body)
