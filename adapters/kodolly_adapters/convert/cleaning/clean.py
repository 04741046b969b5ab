"""The cleaner: fixes the texts of a row in place, and refuses rows that a rule drops."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from ..options import Options
from ..schema import Draft, Exchange, Refusal, Row
from . import fixes, personal_data
from .language import is_untranslated
from .rules import DROP, FIX, MASK, OFF

Fix = Callable[[str], str]

# Applied in this order, again and again until nothing changes: a decoded entity may be a zero-width space.
_FIXES: dict[str, Fix] = {
    "entities": fixes.entities,
    "newlines": fixes.newlines,
    "bom": fixes.bom,
    "zero-width": fixes.zero_width,
    "nfc": fixes.nfc,
    "outer-space": fixes.outer_space,
    "personal-data": personal_data.mask,
}
# A text without one of these characters (or digits) gives the rule nothing to do.
_SIGNS = {
    "entities": "&",
    "newlines": "\r",
    "bom": "\ufeff",
    "zero-width": "\u200b-\u200f\u2060\ufeff\u00ad",
    "personal-data": "0-9@",
}
_MAX_PASSES = 8  # a text that still changes was made to, by entities nested in entities
encode = msgspec.json.Encoder().encode


class Verdict(NamedTuple):
    """Whether the draft is a row now, and what of it was refused."""

    kept: bool
    refusals: tuple[Refusal, ...] = ()


KEPT = Verdict(True)


class _Step(NamedTuple):
    """A rule that is on, and whether it changes the text or only counts."""

    rule: str
    fix: Fix
    changes: bool


class _Unstable(Exception):
    """Every pass over the text changes it again."""


class Cleaner:
    """Applies the rules of one source; `modes` is the result of rules.modes_of.

    `line` is the JSON of the row cleaned last, or None if it must be made again: seeing whether the texts are
    Unicode makes it anyway, and few rows are changed after that.
    """

    def __init__(self, modes: Mapping[str, str], options: Options) -> None:
        def steps(every: Mapping[str, Fix]) -> list[_Step]:
            return [
                _Step(rule, fix, modes[rule] in (FIX, MASK))
                for rule, fix in every.items()
                if modes[rule] != OFF
            ]

        self._modes = modes
        self._min, self._max = options.min_chars, options.max_chars
        self._steps = steps(_FIXES)
        self._context = steps({"no-input-marker": fixes.no_input_marker})
        self._response = steps({"leading-colon": fixes.leading_colon})
        signs = "".join(_SIGNS.get(step.rule, "") for step in self._steps)
        self._has_sign = re.compile(f"[{signs}]" if signs else "(?!)").search
        self.line: bytes | None = None

    def clean(self, draft: Draft, counts: Counter[str]) -> Verdict:
        """Fix `draft` in place and count each rule that fires, once a row or once a refusal.

        A dialogue loses the pairs that are refused, and their units; the last good pair becomes its
        instruction and response.
        """
        if draft.notes:
            counts.update(draft.notes)
        if draft.history or draft.system:
            return self._dialogue(draft, counts)
        refusal = self._row(draft, counts)
        return KEPT if refusal is None else Verdict(False, (refusal,))

    def _dialogue(self, draft: Draft, counts: Counter[str]) -> Verdict:
        """Each pair is cleaned and judged as a row of its own, and the system message is cleaned."""
        hits = Counter[str]()
        good: list[Draft] = []
        refusals: list[Refusal] = []
        for pair in _pairs(draft):
            refusal = self._row(pair, hits)
            if refusal is None:
                good.append(pair)
            else:
                refusals.append(refusal)
        if draft.system and (refusal := self._system(draft, hits, alone=not good)):
            refusals.append(refusal)
            draft.system, draft.system_units = "", 0
        self.line = None
        refused = Counter(refusal.reason for refusal in refusals)
        for rule, times in hits.items():
            counts[rule] += refused[rule] + (times > refused[rule])
        if good:
            last = good[-1]
            draft.instruction, draft.response = last.instruction, last.response
            draft.context, draft.turn = last.context, last.turn
            draft.history = tuple(
                Exchange(pair.instruction, pair.response, pair.turn, pair.units)
                for pair in good[:-1]
            )
            draft.units = draft.system_units + sum(pair.units for pair in good)
        return Verdict(bool(good), tuple(refusals))

    def _system(self, draft: Draft, hits: Counter[str], *, alone: bool) -> Refusal | None:
        """Clean the system message; refuse it if it is bad, or if no pair is left to go with it."""
        message = Draft("", "", "", id=draft.id, units=draft.system_units)
        fired: set[str] = set()
        try:
            encode(draft.system)
            draft.system = self._fixed(draft.system, [], fired)
        except UnicodeEncodeError:
            return _refuse(message, hits, "not-unicode", "half of a surrogate pair")
        except _Unstable:
            return _refuse(message, hits, "entities", "entities nested in entities without end")
        hits.update(fired)
        if alone or not draft.system.strip():
            return _refuse(message, hits, "system-turn", "no text, or no row to go with it")
        return None

    def _row(self, draft: Draft, counts: Counter[str]) -> Refusal | None:
        """Clean and judge a single row, or a pair of a dialogue; its refusal if it is dropped."""
        fired: set[str] = set()
        if self._modes["newlines"] == FIX and ("\r" in draft.response or "\r" in draft.instruction):
            # Every second answer of KoVicuna has CRLF and nothing else to fix.
            draft.instruction = fixes.newlines(draft.instruction)
            draft.response = fixes.newlines(draft.response)
            fired.add("newlines")
        instruction, context, response = draft.instruction, draft.context, draft.response
        try:
            line = encode(Row(instruction, context, response, draft.category))
            draft.instruction = self._fixed(instruction, [], fired)
            draft.context = self._fixed(context, self._context, fired)
            draft.response = self._fixed(response, self._response, fired)
        except UnicodeEncodeError:
            return _refuse(draft, counts, "not-unicode", "half of a surrogate pair")
        except _Unstable:
            return _refuse(draft, counts, "entities", "entities nested in entities without end")
        same = (
            draft.instruction is instruction
            and draft.context is context
            and draft.response is response
        )
        self.line = line if same else None
        if fired:
            counts.update(fired)
        for rule, detail in self._faults(draft):
            if self._modes[rule] == DROP:
                return _refuse(draft, counts, rule, detail)
            counts[rule] += 1
        return None

    def _fixed(self, text: str, more: list[_Step], fired: set[str]) -> str:
        """The text after all steps and `more`, its field's own step; the rules that fire are added to `fired`.

        Steps that only count leave the text. Raises _Unstable.
        """
        if not text or (
            not self._has_sign(text)
            and text.strip() == text
            and unicodedata.is_normalized("NFC", text)
            and (not more or more[0].fix(text) == text)
        ):
            return text
        for _ in range(_MAX_PASSES):
            before = text
            for rule, fix, changes in (*self._steps, *more):
                result = fix(text)
                if result != text:
                    fired.add(rule)
                    if changes:
                        text = result
            if text == before:
                return text
        raise _Unstable

    def _faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        """The rules about whole rows that the clean draft breaks, with details."""
        instruction, context, response = draft.instruction, draft.context, draft.response
        if not instruction.strip() or not response.strip():
            yield "empty", "no instruction or no response"
        modes = self._modes
        if modes["untranslated"] != OFF and is_untranslated(instruction, context, response):
            yield "untranslated", "the response is mostly not Korean"
        if modes["too-short"] != OFF and len(response) < self._min:
            yield "too-short", f"{len(response)} characters of response"
        size = len(instruction) + len(context) + len(response)
        if modes["too-long"] != OFF and size > self._max:
            yield "too-long", f"{size} characters"


def _pairs(draft: Draft) -> list[Draft]:
    """Every pair of a dialogue as a draft of its own, oldest first."""
    pairs = [
        Draft(pair.instruction, "", pair.response, id=draft.id, turn=pair.turn, units=pair.units)
        for pair in draft.history
    ]
    units = draft.units - draft.system_units - sum(pair.units for pair in pairs)
    last = Draft(
        draft.instruction, draft.context, draft.response, id=draft.id, turn=draft.turn, units=units
    )
    return [*pairs, last]


def _refuse(draft: Draft, counts: Counter[str], reason: str, detail: str) -> Refusal:
    counts[reason] += 1
    return Refusal(reason, detail, draft.id, draft.turn, draft.units)
