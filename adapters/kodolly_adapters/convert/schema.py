"""The records that the converter's modules exchange, and the lines and files it writes."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

OPEN_QA = "open_qa"  # the study's category for every row
CLOSED_QA = "closed_qa"

TRAIN, VALIDATION = 0, 1
SPLITS = ("train", "validation")  # names by number

WORK = ".work"  # the folder inside the output folder that a run works in
SUMMARY_FILE = "convert.json"
CARD_FILE = "dataset_card.md"
REJECTED_FILE = "rejected.jsonl"
LENGTHS_PICTURE = "pictures/lengths.png"
SOURCES_PICTURE = "pictures/sources.png"


class Row(msgspec.Struct, gc=False):
    """A Dolly row, exactly; the field order is the order on disk."""

    instruction: str
    context: str
    response: str
    category: str


class Message(msgspec.Struct, gc=False, omit_defaults=True):
    """One message of a dialogue; `context` belongs to users' messages and is left out when empty."""

    role: str
    content: str
    context: str = ""


class Dialogue(msgspec.Struct, gc=False):
    """A row of `--conversations`: a whole dialogue in OpenAI's shape."""

    messages: list[Message]
    category: str


class Origin(msgspec.Struct, gc=False):
    """Provenance of the row at the same place; never trained on."""

    source: str
    file: str
    id: str
    turn: int


class RejectedLine(msgspec.Struct, gc=False):
    """A line of `rejected.jsonl`: `line` counts from 1, `byte` from 0, in the unpacked file."""

    file: str
    line: int
    byte: int
    source: str
    id: str
    turn: int
    reason: str
    detail: str


class Exchange(NamedTuple):
    """A question and its answer in a dialogue: its `turn`-th pair, made from `units` of the input."""

    instruction: str
    response: str
    turn: int = 0
    units: int = 2
    context: str = ""


class Draft(msgspec.Struct, gc=False):
    """A row before cleaning, with what the row itself does not say.

    `group` names a conversation or an article whose rows must be in one split; "" means the question itself.
    `history` holds the earlier pairs of a whole dialogue (`--conversations`), oldest first, and `system`
    the system message before them, which was made from `system_units` of the `units`.
    `turn` counts the pairs of a conversation, or the questions of a page, from 0.
    `units` is how many of the source's units (turns, questions, rows) this row was made from; `notes` names
    what the source noticed about it (a reason of rules.toml, or same-role), for the cleaner to count.
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

    def as_dialogue(self) -> Dialogue:
        """Its messages: system, earlier pairs, its own pair; a context stays with its question."""
        messages = [Message("system", self.system)] if self.system else []
        for pair in self.history:
            messages.append(Message("user", pair.instruction, pair.context))
            messages.append(Message("assistant", pair.response))
        question = Message("user", self.instruction, self.context)
        return Dialogue([*messages, question, Message("assistant", self.response)], self.category)


class Rejection(NamedTuple):
    """Units of the input that become no row: `reason` is a rule's name, `detail` a sentence."""

    reason: str
    detail: str
    id: str = ""
    turn: int = 0
    units: int = 1
