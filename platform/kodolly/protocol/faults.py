"""From pydantic's errors to one that a client can act on: which field, and what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from kodolly.errors import BadRequest

PREFIX = "Input "

Path = tuple[int | str, ...]


def bad_request(error: ValidationError, data: dict[str, Any]) -> BadRequest:
    """The first wrong field of `data`, by a path such as `messages[0].content`, and its fault.

    Where a field may be of several types, pydantic tells what each of them lacks. The type that
    was meant is the one whose fault lies deepest; if none does, all are named.
    """
    faults = error.errors(include_url=False, include_input=False, include_context=False)
    paths = [_path(fault["loc"], data, missing=fault["type"] == "missing") for fault in faults]
    top = paths[0][: 2 if len(paths[0]) > 1 and isinstance(paths[0][1], int) else 1]
    same_field = [path for path in paths if path[: len(top)] == top]
    path = max(same_field, key=_depth)
    reasons = [fault["msg"] for fault, at in zip(faults, paths, strict=True) if at == path]
    field = field_name(path)
    return BadRequest(f"{field}: {_either(reasons)}", param=field)


def _depth(path: Path) -> tuple[int, list[int]]:
    """How far a type got before its fault: into the value, then along its lists."""
    return len(path), [part for part in path if isinstance(part, int)]


def field_name(path: Sequence[int | str]) -> str:
    """A path as a client writes it: `messages[0].role`."""
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def _path(loc: Path, data: Any, *, missing: bool) -> Path:
    """The part of `loc` that is in the request: pydantic also puts names of its types into it."""
    path: list[int | str] = []
    for depth, part in enumerate(loc):
        last = depth == len(loc) - 1
        if isinstance(part, int) and isinstance(data, list):
            data = data[part] if part < len(data) else None
        elif (
            isinstance(part, str)
            and isinstance(data, dict)
            and (part in data or (missing and last))
        ):
            data = data.get(part)
        else:
            continue
        path.append(part)
    return tuple(path) or loc[:1]


def _either(reasons: list[str]) -> str:
    """All reasons as one: "should be a valid string or a valid list"."""
    distinct = list(dict.fromkeys(reason.removeprefix(PREFIX) for reason in reasons))
    should = [reason for reason in distinct if reason.startswith("should be ")]
    if len(distinct) > 1 and len(should) == len(distinct):
        return "should be " + " or ".join(reason.removeprefix("should be ") for reason in distinct)
    return distinct[0]
