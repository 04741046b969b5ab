"""The cleaner: a draft's texts put right in place, and rows refused that a rule drops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from .options import Options
from .rows import Draft, Refusal


class Cleaner:
    """Applies the rules of one source; `modes` is what rules.modes_of gives."""

    def __init__(self, modes: Mapping[str, str], options: Options) -> None:
        self.modes = modes
        self.options = options

    def clean(self, draft: Draft, counts: Counter[str]) -> Refusal | None:
        """Put `draft` right in place, count each rule that fires once; the refusal of a dropped row."""
        draft.instruction = draft.instruction.strip()
        draft.context = draft.context.strip()
        draft.response = draft.response.strip()
        counts.update(draft.notes)
        if not draft.instruction or not draft.response:
            counts["empty"] += 1
            return Refusal(
                "empty", "no instruction or no response", draft.id, draft.turn, draft.units
            )
        return None
