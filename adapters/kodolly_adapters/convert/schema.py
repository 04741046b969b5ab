"""What passes between a source, the cleaner and the writers."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

OPEN_QA = "open_qa"  # the study's category for every row
CLOSED_QA = "closed_qa"


class Row(msgspec.Struct, gc=False):
    """A Dolly row, exactly; the field order is the order on disk."""

    instruction: str
    context: str
    response: str
    category: str


class Exchange(NamedTuple):
    """A question of a dialogue and its answer: the `turn`-th pair, which accounts for `units`."""

    instruction: str
    response: str
    turn: int = 0
    units: int = 2


class Draft(msgspec.Struct, gc=False):
    """A row on its way, with what the row itself does not say.

    `group` names what a train/validation split must not tear apart (a conversation, an article); "" means
    the question itself. `history` holds the earlier pairs of a whole dialogue (`--conversations`), oldest first,
    and `system` what stands before them, which accounts for `system_units` of the `units`.
    `turn` counts the pairs of a conversation, or the questions of a page, from 0.
    `units` is how many of the source's units (turns, questions, rows) this row accounts for; `notes` names
    what fired already in the source (a reason of rules.toml, or same-role), for the cleaner to count.
    """

    instruction: str
    context: str
    response: str
    category: str = OPEN_QA
    id: str = ""
    turn: int = 0
    group: str = ""
    history: tuple[Exchange, ...] = ()
    system: str = ""
    system_units: int = 0
    units: int = 1
    notes: tuple[str, ...] = ()


class Refusal(NamedTuple):
    """Units of the input that become no row: `reason` is a rule's name, `detail` a sentence."""

    reason: str
    detail: str
    id: str = ""
    turn: int = 0
    units: int = 1
