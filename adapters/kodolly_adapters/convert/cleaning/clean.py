"""The cleaner: a draft's texts put right in place, and rows refused that a rule drops.

Most rows need nothing, so a few searches over all texts at once decide whether any fix is tried.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from ..options import Options
from ..schema import Draft, Exchange, Refusal, Row
from . import fixes, personal_data
from .language import is_untranslated
from .rules import DROP, FIX, MASK, OFF

Fix = Callable[[str], str]

# In this order, again and again until nothing changes: a decoded entity may be a zero-width space.
_EVERY_TEXT: tuple[tuple[str, Fix], ...] = (
    ("entities", fixes.entities),
    ("newlines", fixes.newlines),
    ("bom", fixes.bom),
    ("zero-width", fixes.zero_width),
    ("nfc", fixes.nfc),
    ("outer-space", fixes.outer_space),
    ("personal-data", personal_data.mask),
)
_CONTEXT = (*_EVERY_TEXT, ("no-input-marker", fixes.no_input_marker))
_RESPONSE = (*_EVERY_TEXT, ("leading-colon", fixes.leading_colon))
# Without one of these characters a text gives the rule nothing to do.
_SIGNS = {
    "entities": "&",
    "newlines": "\r",
    "bom": "\ufeff",
    "zero-width": "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad",
}
_PASSES = 8  # entities nested deeper than this are no accident
encode = msgspec.json.Encoder().encode


class Verdict(NamedTuple):
    """Is the draft a row now, and what of it was refused?"""

    kept: bool
    refusals: tuple[Refusal, ...] = ()


KEPT = Verdict(True)


class _Unstable(Exception):
    """Every pass over the text changes it anew."""


class Cleaner:
    """Applies the rules of one source; `modes` is what rules.modes_of gives.

    `line` is the JSON of the row cleaned last, where nothing had to be put right: it was made to see whether
    the texts are Unicode, and most rows need no other.
    """

    def __init__(self, modes: Mapping[str, str], options: Options) -> None:
        self._untranslated = modes["untranslated"]
        self._too_short, self._min = modes["too-short"], options.min_chars
        self._too_long, self._max = modes["too-long"], options.max_chars
        self._nfc = modes["nfc"] != OFF
        self._newlines = modes["newlines"] == FIX
        self._strip = modes["outer-space"] != OFF
        self._personal = modes["personal-data"] != OFF
        self._marker = modes["no-input-marker"] != OFF
        self._colon = modes["leading-colon"] != OFF
        signs = "".join(chars for rule, chars in _SIGNS.items() if modes[rule] != OFF)
        self._signs = tuple(dict.fromkeys(signs))
        self._every, self._context, self._response = (
            [(rule, fix, modes[rule] in (FIX, MASK)) for rule, fix in known if modes[rule] != OFF]
            for known in (_EVERY_TEXT, _CONTEXT, _RESPONSE)
        )

        self.line: bytes | None = None

    def clean(self, draft: Draft, counts: Counter[str]) -> Verdict:
        """Put `draft` right in place and count each rule that fires once a row, or once a refusal.

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
        """Every pair cleaned and judged as a row of its own, and the system message cleaned."""
        hits = Counter[str]()
        good: list[Draft] = []
        refusals: list[Refusal] = []
        for pair in _pairs(draft):
            refusal = self._row(pair, hits)
            if refusal is None:
                good.append(pair)
            else:
                refusals.append(refusal)
        if draft.system:
            refusals += self._system(draft, hits, alone=not good)
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

    def _system(self, draft: Draft, hits: Counter[str], *, alone: bool) -> list[Refusal]:
        """Clean the system message; its refusal, if it is bad or no pair is left to go with it."""
        fired: set[str] = set()
        said = Draft("", "", "", id=draft.id, units=draft.system_units)
        try:
            encode(draft.system)
            draft.system = _apply(self._every, draft.system, fired)
        except UnicodeEncodeError:
            refusal = _refuse(said, hits, "not-unicode", "half of a surrogate pair")
        except _Unstable:
            refusal = _refuse(said, hits, "entities", "entities nested in entities without end")
        else:
            hits.update(fired)
            if draft.system.strip() and not alone:
                return []
            refusal = _refuse(said, hits, "system-turn", "no text, or no row to go with it")
        draft.system, draft.system_units = "", 0
        return [refusal]

    def _row(self, draft: Draft, counts: Counter[str]) -> Refusal | None:
        """A single row, or a pair of a dialogue; its refusal if it is dropped."""
        asked, context, answer = draft.instruction, draft.context, draft.response
        try:
            line = encode(Row(asked, context, answer, draft.category))
        except UnicodeEncodeError:
            return _refuse(draft, counts, "not-unicode", "half of a surrogate pair")
        fired: set[str] = set()
        if self._newlines and ("\r" in draft.response or "\r" in draft.instruction):
            # Every second answer of KoVicuna has CRLF and nothing else: it is spared the other fixes.
            draft.instruction = fixes.newlines(draft.instruction)
            draft.response = fixes.newlines(draft.response)
            fired.add("newlines")
        if not self._is_plain(draft):
            try:
                self._fix(draft, fired)
            except _Unstable:
                return _refuse(draft, counts, "entities", "entities nested in entities without end")
        if fired:
            counts.update(fired)
        same = draft.instruction is asked and draft.context is context and draft.response is answer
        self.line = line if same else None
        return self._judge(draft, counts)

    def _is_plain(self, draft: Draft) -> bool:
        """Does no fix have anything to do?"""
        asked, context, answer = draft.instruction, draft.context, draft.response
        if self._personal:
            return False
        if self._strip and (
            asked.strip() is not asked
            or context.strip() is not context
            or answer.strip() is not answer
        ):
            return False
        if self._marker and context and fixes.no_input_marker(context) != context:
            return False
        if self._colon and answer.startswith(":"):
            return False
        text = f"{asked}\n{context}\n{answer}"
        for sign in self._signs:
            if sign in text:
                return False
        return not self._nfc or unicodedata.is_normalized("NFC", text)

    def _fix(self, draft: Draft, fired: set[str]) -> None:
        draft.instruction = _apply(self._every, draft.instruction, fired)
        draft.context = _apply(self._context, draft.context, fired)
        draft.response = _apply(self._response, draft.response, fired)

    def _judge(self, draft: Draft, counts: Counter[str]) -> Refusal | None:
        """What the row rules say of the cleaned draft."""
        asked, context, answer = draft.instruction, draft.context, draft.response
        if not asked or not answer or asked.isspace() or answer.isspace():
            return _refuse(draft, counts, "empty", "no instruction or no response")
        if self._untranslated != OFF and is_untranslated(asked, context, answer):
            if self._untranslated == DROP:
                return _refuse(draft, counts, "untranslated", "the response is mostly not Korean")
            counts["untranslated"] += 1
        if self._too_short != OFF and len(answer) < self._min:
            if self._too_short == DROP:
                return _refuse(draft, counts, "too-short", f"{len(answer)} characters of response")
            counts["too-short"] += 1
        if self._too_long != OFF and (size := len(asked) + len(context) + len(answer)) > self._max:
            if self._too_long == DROP:
                return _refuse(draft, counts, "too-long", f"{size} characters")
            counts["too-long"] += 1
        return None


def _apply(steps: list[tuple[str, Fix, bool]], text: str, fired: set[str]) -> str:
    """Every step again and again until none changes the text; steps that only count leave it."""
    for _ in range(_PASSES):
        before = text
        for rule, fix, acts in steps:
            fixed = fix(text)
            if fixed != text:
                fired.add(rule)
                if acts:
                    text = fixed
        if text == before:
            return text
    raise _Unstable


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
