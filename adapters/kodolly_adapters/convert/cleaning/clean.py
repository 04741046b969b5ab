"""The cleaner: fixes the texts of a row in place, and refuses rows that a rule drops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import msgspec

from ..options import Options
from ..schema import Draft, Exchange, Refusal, Row
from .fixes import Fixer, Unstable, newlines
from .language import is_untranslated
from .rules import DROP, FIX, OFF

encode = msgspec.json.Encoder().encode

Verdict = tuple[bool, list[Refusal]]  # is the draft a row now, and what of it was refused?


class Cleaner:
    """Applies the rules of one source; `modes` is the result of rules.modes_of.

    `line` is the JSON of the row cleaned last, or None if it must be made again: seeing whether the texts are
    Unicode makes it anyway, and few rows are changed after that.
    """

    def __init__(self, modes: Mapping[str, str], options: Options) -> None:
        self._modes = modes
        self._min, self._max = options.min_chars, options.max_chars
        self._fixer = Fixer(modes)
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
        return (True, []) if refusal is None else (False, [refusal])

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
        if draft.system:
            refusal = self._system(draft, hits, is_alone=not good)
            if refusal is not None:
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
        return bool(good), refusals

    def _system(self, draft: Draft, counts: Counter[str], *, is_alone: bool) -> Refusal | None:
        """Clean the system message; refuse it if it is bad, or if no pair is left to go with it."""
        message = Draft(draft.system, "", "", id=draft.id, units=draft.system_units)
        refusal = self._fix(message, counts, set())
        draft.system = message.instruction
        if refusal is None and (is_alone or not draft.system.strip()):
            return _refuse(message, counts, "system-turn", "no text, or no row to go with it")
        return refusal

    def _row(self, draft: Draft, counts: Counter[str]) -> Refusal | None:
        """Clean and judge a single row, or a pair of a dialogue; its refusal if it is dropped."""
        fired: set[str] = set()
        if self._modes["newlines"] == FIX and ("\r" in draft.response or "\r" in draft.instruction):
            # Every second answer of KoVicuna has CRLF and nothing else to fix.
            draft.instruction = newlines(draft.instruction)
            draft.response = newlines(draft.response)
            fired.add("newlines")
        refusal = self._fix(draft, counts, fired)
        if refusal is not None:
            return refusal
        for rule, detail in self._faults(draft):
            if self._modes[rule] == DROP:
                return _refuse(draft, counts, rule, detail)
            counts[rule] += 1
        return None

    def _fix(self, draft: Draft, counts: Counter[str], fired: set[str]) -> Refusal | None:
        """Fix the draft's texts and count the rules that fire, beside those that have `fired` before."""
        texts = draft.instruction, draft.context, draft.response
        fix = self._fixer.fix
        try:
            line = encode(Row(*texts, draft.category))
            draft.instruction = fix(draft.instruction, "instruction", fired)
            draft.context = fix(draft.context, "context", fired)
            draft.response = fix(draft.response, "response", fired)
        except UnicodeEncodeError:
            return _refuse(draft, counts, "not-unicode", "half of a surrogate pair")
        except Unstable:
            return _refuse(draft, counts, "entities", "entities nested in entities without end")
        is_same = (draft.instruction, draft.context, draft.response) == texts
        self.line = line if is_same else None
        if fired:
            counts.update(fired)
        return None

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
    return [*pairs, msgspec.structs.replace(draft, history=(), system="", units=units)]


def _refuse(draft: Draft, counts: Counter[str], reason: str, detail: str) -> Refusal:
    counts[reason] += 1
    return Refusal(reason, detail, draft.id, draft.turn, draft.units)
