"""The cleaner: fixes the texts of a row in place, and rejects rows that a rule drops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from ..options import Options
from ..schema import Draft, Exchange, Rejection, Row
from .fixes import Fixer, Unstable, newlines
from .language import is_untranslated
from .rules import DROP, FIX, OFF

encode = msgspec.json.Encoder().encode

Verdict = tuple[bool, list[Rejection]]  # whether the draft is a row, and its rejected parts


class Cleaner:
    """Applies the rules of one source; `modes` is the result of rules.modes_of.

    `line` is the JSON of the last row, or None if cleaning changed it. The check for valid Unicode encodes
    every row anyway, and few rows are changed after that, so the JSON is kept for the caller.
    """

    def __init__(self, modes: Mapping[str, str], options: Options) -> None:
        self._modes = modes
        self._min, self._max = options.min_chars, options.max_chars
        self._fixer = Fixer(modes)
        self.line: bytes | None = None

    def clean(self, draft: Draft, counts: Counter[str]) -> Verdict:
        """Fix `draft` in place and count each rule that applies, once a row or once a rejection.

        A dialogue loses its rejected pairs and their units; the last remaining pair becomes its
        instruction and response.
        """
        if draft.notes:
            counts.update(draft.notes)
        if draft.history or draft.system:
            return self._dialogue(draft, counts)
        rejection = self._row(draft, counts)
        return (True, []) if rejection is None else (False, [rejection])

    def _dialogue(self, draft: Draft, counts: Counter[str]) -> Verdict:
        """Clean and check each pair as a row of its own, and clean the system message."""
        hits = Counter[str]()
        remaining: list[Draft] = []
        rejections: list[Rejection] = []
        for pair in _pairs(draft):
            rejection = self._row(pair, hits)
            if rejection is None:
                remaining.append(pair)
            else:
                rejections.append(rejection)
        if draft.system:
            rejection = self._system(draft, hits, is_alone=not remaining)
            if rejection is not None:
                rejections.append(rejection)
                draft.system, draft.system_units = "", 0
        self.line = None
        by_reason = Counter(rejection.reason for rejection in rejections)
        for rule, times in hits.items():
            counts[rule] += by_reason[rule] + (times > by_reason[rule])
        if remaining:
            last = remaining[-1]
            draft.instruction, draft.response = last.instruction, last.response
            draft.context, draft.turn = last.context, last.turn
            draft.history = tuple(
                Exchange(pair.instruction, pair.response, pair.turn, pair.units, pair.context)
                for pair in remaining[:-1]
            )
            draft.units = draft.system_units + sum(pair.units for pair in remaining)
        return bool(remaining), rejections

    def _system(self, draft: Draft, counts: Counter[str], *, is_alone: bool) -> Rejection | None:
        """Clean the system message; reject it if it is broken or empty, or if no pair remains."""
        message = Draft(draft.system, "", "", id=draft.id, units=draft.system_units)
        rejection = self._fix(message, counts, set())
        draft.system = message.instruction
        if rejection is None and (is_alone or not draft.system.strip()):
            return _reject(message, counts, "system-turn", "no text, or no row to go with it")
        return rejection

    def _row(self, draft: Draft, counts: Counter[str]) -> Rejection | None:
        """Clean and check a single row, or a pair of a dialogue; returns its rejection, if any."""
        hits: set[str] = set()
        if self._modes["newlines"] == FIX and ("\r" in draft.response or "\r" in draft.instruction):
            # Done first, which is fast: every second answer of KoVicuna has CRLF and nothing else to fix.
            draft.instruction = newlines(draft.instruction)
            draft.response = newlines(draft.response)
            hits.add("newlines")
        rejection = self._fix(draft, counts, hits)
        if rejection is not None:
            return rejection
        for rule, detail in self._faults(draft):
            if self._modes[rule] == DROP:
                return _reject(draft, counts, rule, detail)
            counts[rule] += 1
        return None

    def _fix(self, draft: Draft, counts: Counter[str], hits: set[str]) -> Rejection | None:
        """Fix the draft's texts, and count the rules that applied: here, or before (in `hits`)."""
        texts = draft.instruction, draft.context, draft.response
        fix = self._fixer.fix
        try:
            line = encode(Row(*texts, draft.category))
            draft.instruction = fix(draft.instruction, "instruction", hits)
            draft.context = fix(draft.context, "context", hits)
            draft.response = fix(draft.response, "response", hits)
        except UnicodeEncodeError:
            return _reject(draft, counts, "not-unicode", "half of a surrogate pair")
        except Unstable:
            return _reject(draft, counts, "entities", "entities nested in entities without end")
        is_same = (draft.instruction, draft.context, draft.response) == texts
        self.line = line if is_same else None
        if hits:
            counts.update(hits)
        return None

    def _faults(self, draft: Draft) -> Iterator[tuple[str, str]]:
        """Each rule about whole rows that the cleaned draft breaks, and a detail for its rejection."""
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
        Draft(
            pair.instruction,
            pair.context,
            pair.response,
            id=draft.id,
            turn=pair.turn,
            units=pair.units,
        )
        for pair in draft.history
    ]
    units = draft.units - draft.system_units - sum(pair.units for pair in pairs)
    return [*pairs, msgspec.structs.replace(draft, history=(), system="", units=units)]


def _reject(draft: Draft, counts: Counter[str], reason: str, detail: str) -> Rejection:
    counts[reason] += 1
    return Rejection(reason, detail, draft.id, draft.turn, draft.units)
