"""What several sources share: ids, answers, categories and Creative Commons licences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from ..options import Options
from ..reading.source import Licence
from ..schema import CLOSED_QA, OPEN_QA

LooksLike = Callable[[Mapping[str, Any]], bool]


class WithId(msgspec.Struct, gc=False, kw_only=True):
    """A record, or a question in one, that may have an id."""

    id: str | int | None = None

    @property
    def id_text(self) -> str:
        """The id as text, "" where there is none."""
        return "" if self.id is None else str(self.id)


class Answer(msgspec.Struct, gc=False):
    """An answer (in KorQuAD 2 its HTML) and where in the context it starts, in characters."""

    text: str | None = None
    answer_start: int | None = None


def creative_commons(terms: str, consequence: str) -> Licence:
    """The licence with these terms, e.g. "BY-ND 2.0 KR": NC forbids commercial use, ND derivatives."""
    return Licence(
        f"CC {terms}",
        f"https://creativecommons.org/licenses/{terms.lower().replace(' ', '/')}/",
        commercial="NC" not in terms,
        derivatives="ND" not in terms,
        consequence=consequence,
    )


def has_keys(*choices: set[str], without: str | None = None) -> LooksLike:
    """A `looks_like`: the record has all keys of one of the choices, and not the key `without`."""
    return partial(_has_keys, choices, without)  # unlike a lambda it can be sent to a process


def _has_keys(choices: Sequence[set[str]], without: str | None, record: Mapping[str, Any]) -> bool:
    return without not in record and any(record.keys() >= keys for keys in choices)


def category_with_context(options: Options) -> str:
    """The category of a question whose answer is in its context."""
    return CLOSED_QA if options.categories == "dolly" else OPEN_QA


def is_blank(text: str | None) -> bool:
    """Is there nothing but white space?"""
    return not text or text.isspace()
