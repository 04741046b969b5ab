"""What several sources share: ids, answers and categories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from ..options import Options
from ..schema import CLOSED_QA, OPEN_QA, Draft

CATEGORIES = frozenset({
    "brainstorming", "classification", "closed_qa", "creative_writing", "general_qa",
    "information_extraction", "open_qa", "summarization",
})  # fmt: skip
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


def set_category(row: Draft, category: object) -> None:
    """Give the row one of Dolly's categories; any other is noted, and the row stays what it is."""
    if isinstance(category, str) and category in CATEGORIES:
        row.category = category
    else:
        row.notes += ("unknown-category",)


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
