"""What a source is: how its files are recognised, split into records, and turned into drafts."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ..options import Options
from ..schema import Draft, Rejection

Drafts = Iterator[Draft | Rejection]


class Licence(msgspec.Struct, frozen=True):
    """The terms of a source, and what follows for a model trained on it."""

    name: str
    url: str
    commercial: bool  # may a model trained on it be sold?
    derivatives: bool  # may converted rows be handed on?
    consequence: str  # what follows from the terms: one sentence for the data card


@dataclass(frozen=True, slots=True)
class Source:
    """One public data set. It is sent to worker processes, so its functions must be functions of a module.

    `record` is the msgspec type of one record: other fields are skipped, and a field of a wrong type rejects the
    record. `first_keys` are the keys that a record may begin with. Borders between records are found by them
    without parsing, so an object nested in a record may not follow another object and begin with such a key.
    `looks_like` tells whether a record of an unknown file is this source's; with `by_name` the file's name must
    match one of `patterns` too, and then this source goes before others with the same records.
    `drafts` yields a Draft or a Rejection for everything in a record, so that nothing is lost silently.
    `units` counts a record's units (turns, questions); those of all that `drafts` yields must add up to it.
    """

    name: str
    title: str
    licence: Licence
    record: Any
    first_keys: frozenset[str]
    looks_like: Callable[[Mapping[str, Any]], bool]
    drafts: Callable[[Any, Options], Drafts]
    patterns: tuple[str, ...] = ()  # file names, as fnmatch writes them
    by_name: bool = False  # its records look like another source's: the file's name must match
    layout: str = (
        "json"  # what its own files are: "json" in any form (or a table of JSON's rows), or "csv"
    )
    unit: str = "rows"  # what the input is counted in, in the plural
    units: Callable[[Any], int] | None = None  # None: one a record
    rules: Mapping[str, str] | None = None  # modes that replace the rules' defaults


@functools.lru_cache(256)
def border_pattern(
    first_keys: frozenset[str],
    first_key: str = "",
    *,
    in_wrapper: bool = False,
    at_line_start: bool = False,
) -> re.Pattern[bytes]:
    """Matches from the `}` that ends a record to the first key of the next, whose `{` is group 1.

    Inside a JSON string a quote is always written `\\"`, so `}, {"KEY":` is a border and nothing else. It is
    found at over 1 GB/s. `first_key` is one more key, as the file writes it. Arrays may end and begin between
    records; in a wrapper, {"A": RECORD, "B": [RECORD, RECORD]}, so may its keys. `at_line_start` also finds a
    record without a `}` before it: the one after a record that is cut off.
    """
    keys = b"|".join(re.escape(key.encode()) for key in sorted({*first_keys, first_key} - {""}))
    wrapper = rb'(?:"(?:[^"\\]|\\.){0,200}"\s*:[\s\[]*)?' if in_wrapper else b""
    before = rb"(?:\}|\n)" if at_line_start else rb"\}"
    return re.compile(before + rb"[\s,\[\]]*" + wrapper + rb'(\{)\s*"(?:' + keys + rb')"\s*:')
