"""Shard in, part out: the pure function every engine drives.

It depends on nothing but its arguments, so that any number of processes or machines may run it in any order.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import xxhash

from . import signatures
from .clean import Cleaner
from .decode import Broken, Shard, decode, positions
from .options import Options
from .part import INDEX, SPLITS, TRAIN, VALIDATION, Done, Part, PartCounts
from .rows import Draft, Refusal, Row
from .rules import modes_of
from .source import Source
from .sources import named

encode = msgspec.json.Encoder().encode
LOW = 2**64 - 1
DEV = re.compile(r"(?<![a-z])(dev|val|valid|validation|test)(?![a-z])")
TRAINING = re.compile(r"(?<![a-z])train(ing)?(?![a-z])")
PASSAGE = 100  # characters from which a context gives an answer away to whoever has read it


class Rejected(msgspec.Struct, gc=False):
    """A line of `rejected.jsonl`: `line` counts from 1, `byte` from 0, in the unpacked file."""

    file: str
    line: int
    byte: int
    source: str
    id: str
    turn: int
    reason: str
    detail: str


class Origin(msgspec.Struct, gc=False):
    """Provenance of the row at the same place; never trained on."""

    source: str
    file: str
    id: str
    turn: int


class Said(msgspec.Struct, gc=False, omit_defaults=True):
    """One message of a dialogue; `context` belongs to users' messages and is left out when empty."""

    role: str
    content: str
    context: str = ""


class Dialogue(msgspec.Struct, gc=False):
    """A row of `--conversations`: a whole dialogue in OpenAI's shape."""

    messages: list[Said]
    category: str


def convert_shard(shard: Shard, options: Options) -> Part:
    """Every record of `shard` to rows or rejected lines.

    Raises InputError, naming file and byte, where the shard's bytes cannot be read on.
    """
    source = named(shard.source)
    assert source is not None, shard.source
    return _Work(shard, source, options).run()


class _Work:
    """The columns of a part while they grow."""

    def __init__(self, shard: Shard, source: Source, options: Options) -> None:
        self.shard, self.source, self.options = shard, source, options
        modes = modes_of(options.rules, source.rules)
        self.cleaner = Cleaner(modes, options)
        self.near = modes["near-duplicate"] != "off"
        self.keeps_origins = options.provenance or any(
            modes[rule] == "drop" for rule in ("duplicate", "near-duplicate", "leakage")
        )
        self.limit = int(options.validation * 2**64)
        self.split = official(shard.file) if options.splits == "official" else None
        self.group: tuple[str | None, int] = None, TRAIN  # asked for last, and its split
        self.hits: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.counts = PartCounts()
        self.lines: dict[int, list[bytes]] = {split: [] for split in SPLITS}
        self.origins: dict[int, list[bytes]] = {split: [] for split in SPLITS}
        self.rejected: list[bytes] = []
        self.places: list[tuple[Any, ...]] = []
        self.texts: list[list[str]] = []

    def run(self) -> Part:
        records = decode(self.shard, self.source, keep_going=self.options.keep_going)
        places = positions(self.shard, self.source, len(records))
        units, drafts, clean = self.source.units, self.source.drafts, self.cleaner.clean
        for number, record in enumerate(records):
            at = places[number]
            if type(record) is Broken:
                self.counts.units += 1
                self.refuse(Refusal(record.reason, record.detail), at)
                continue
            self.counts.units += 1 if units is None else units(record)
            for item in drafts(record, self.options):
                if type(item) is Refusal:
                    self.refuse(item, at)
                    continue
                kept, refusals = clean(item, self.hits)  # type: ignore[arg-type]
                for refusal in refusals:
                    self.refuse(refusal, at)
                if kept:
                    self.keep(item, at)  # type: ignore[arg-type]
        self.counts.records = len(records)
        return self.part()

    def refuse(self, refusal: Refusal, at: tuple[int, int]) -> None:
        self.refused[refusal.reason] += refusal.units
        self.rejected.append(
            _note(
                Rejected(
                    self.shard.file,
                    at[1],
                    at[0],
                    self.shard.source,
                    refusal.id,
                    refusal.turn,
                    refusal.reason,
                    refusal.detail,
                )
            )
        )

    def keep(self, draft: Draft, at: tuple[int, int]) -> None:
        instruction, context, response = draft.instruction, draft.context, draft.response
        if self.options.conversations:
            line = encode(dialogue(draft))
        else:
            line = self.cleaner.line or encode(Row(instruction, context, response, draft.category))
        origin = b""
        if self.keeps_origins:
            origin = _note(Origin(self.shard.source, self.shard.file, draft.id, draft.turn))
        if self.near:
            self.texts.append(" ".join(_texts(draft)).split())
        digest = xxhash.xxh3_128_intdigest(line)
        high = digest >> 64
        leak = high if len(context) < PASSAGE else xxhash.xxh3_64_intdigest(context.encode())
        split = self.split
        if split is None:
            split = self.split_of(draft.group or instruction)
        chars = len(instruction), len(context), len(response)
        if draft.history or draft.system:
            chars = _lengths(draft)
        self.lines[split].append(line)
        if origin:
            self.origins[split].append(origin)
        self.places.append(
            (
                (high, digest & LOW),
                leak,
                at[0],
                at[1],
                len(line) + 1,
                len(origin) + 1,
                chars,
                draft.units,
                split,
            )
        )
        self.counts.kept += draft.units

    def split_of(self, group: str) -> int:
        """The split of a group; a conversation's rows ask for the same one in a row."""
        if group != self.group[0]:
            below = xxhash.xxh3_64_intdigest(group.encode("utf-8", "replace")) < self.limit
            self.group = group, VALIDATION if below else TRAIN
        return self.group[1]

    def part(self) -> Part:
        self.counts.rows = len(self.places)
        self.counts.rejected = len(self.rejected)
        self.counts.refused = dict(sorted(self.refused.items()))
        self.counts.hits = dict(sorted(self.hits.items()))
        return Part(
            rows={split: _joined(lines) for split, lines in self.lines.items()},
            origins={split: _joined(lines) for split, lines in self.origins.items()},
            rejected=_joined(self.rejected),
            index=np.array(self.places, dtype=INDEX),
            signatures=signatures.of(self.texts) if self.near else None,
            done=Done(self.shard.file, self.shard.source, self.shard.identity, self.counts),
        )


def official(file: str) -> int:
    """The split a file's own name says it is, folders aside; a zip's where its member's says nothing."""
    archive, _, member = file.lower().rpartition("!")
    for name in (member, archive):
        last = name.rpartition("/")[2]
        if DEV.search(last):
            return VALIDATION
        if TRAINING.search(last):
            return TRAIN
    return TRAIN


def dialogue(draft: Draft) -> Dialogue:
    """The draft as messages: system, earlier pairs, its own; the context stays with its question."""
    messages = [Said("system", draft.system)] if draft.system else []
    for pair in draft.history:
        messages += [Said("user", pair.instruction), Said("assistant", pair.response)]
    messages += [Said("user", draft.instruction, draft.context), Said("assistant", draft.response)]
    return Dialogue(messages, draft.category)


def _texts(draft: Draft) -> list[str]:
    """Every text of the row, of a dialogue's earlier messages too."""
    earlier = [text for pair in draft.history for text in (pair.instruction, pair.response)]
    return [draft.system, *earlier, draft.instruction, draft.context, draft.response]


def _lengths(draft: Draft) -> tuple[int, int, int]:
    """Characters of a dialogue's questions, contexts (a system message is one) and answers."""
    asked, answer = len(draft.instruction), len(draft.response)
    asked += sum(len(pair.instruction) for pair in draft.history)
    answer += sum(len(pair.response) for pair in draft.history)
    return asked, len(draft.system) + len(draft.context), answer


def _note(what: Rejected | Origin) -> bytes:
    """A line about a row; half a surrogate pair in a name of the input becomes `?`."""
    try:
        return encode(what)
    except UnicodeEncodeError:
        plain = {
            name: value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
            for name, value in msgspec.structs.asdict(what).items()
        }
        return encode(msgspec.structs.replace(what, **plain))


def _joined(lines: list[bytes]) -> bytes:
    return b"\n".join([*lines, b""]) if lines else b""
