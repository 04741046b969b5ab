"""Shard in, part out: the pure function every engine drives.

It depends on nothing but its arguments, so that any number of processes or machines may run it in any order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import xxhash

from . import signatures
from .cleaning.clean import Cleaner
from .cleaning.rules import FIX, OFF, modes_of
from .options import Options
from .part import INDEX, PACK, PASSAGE, SPLITS, TRAIN, VALIDATION, Done, Index, Part, PartCounts
from .reading.records import Broken, Shard, decode, positions, starts_of
from .reading.source import Source
from .schema import Draft, Refusal, Row
from .sources import named

if TYPE_CHECKING:
    from .fastpath import Scan

encode = msgspec.json.Encoder().encode
LOW = 2**64 - 1
SCAN_FROM = (
    16 << 20
)  # bytes of a file that the general way takes in any case: small files are done by then
DEV = re.compile(r"(?<![a-z])(dev|val|valid|validation|test)(?![a-z])")
TRAINING = re.compile(r"(?<![a-z])train(ing)?(?![a-z])")


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
        self.modes = modes
        self.keeps_origins = options.provenance or any(
            modes[rule] == "drop" for rule in ("duplicate", "near-duplicate", "leakage")
        )
        self.limit = int(options.validation * 2**64)
        self.split = official(shard.file) if options.splits == "official" else None
        self.group: tuple[bytes | None, int] = None, TRAIN  # asked for last, and its split
        self.hits: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.counts = PartCounts()
        self.lines: dict[int, list[bytes | memoryview]] = {split: [] for split in SPLITS}
        self.origins: dict[int, list[bytes | memoryview]] = {split: [] for split in SPLITS}
        self.rejected: list[bytes] = []
        self.places: list[bytes] = []
        self.texts: list[list[str]] = []

    def run(self) -> Part:
        if self.is_scannable() and (found := self.scan()) is not None:
            self.take(found)
            return self.part()
        starts = starts_of(self.shard, self.source)
        records = decode(self.shard, self.source, keep_going=self.options.keep_going)
        places = positions(self.shard, starts, len(records))
        for record, at in zip(records, places, strict=True):
            self.record(record, at)
        self.counts.records = len(records)
        return self.part()

    def is_scannable(self) -> bool:
        """Does the fast scan do all that is asked for? Loading it takes half a second, compiling it once ten."""
        shard, options, modes = self.shard, self.options, self.modes
        return (
            bool(self.source.scan)
            and shard.kind == "array"
            and shard.offset >= SCAN_FROM
            and not (options.conversations or options.history or self.near)
            and options.kovicuna_roles == "human-asks"
            and modes["newlines"] == FIX
            and modes["personal-data"] == OFF
        )

    def record(self, record: Any, at: tuple[int, int]) -> None:
        """One parsed record, the general way."""
        if type(record) is Broken:
            self.counts.units += 1
            self.refuse(Refusal(record.reason, record.detail), at)
            return
        units = self.source.units
        self.counts.units += 1 if units is None else units(record)
        for item in self.source.drafts(record, self.options):
            if type(item) is Refusal:
                self.refuse(item, at)
            else:
                self.draft(item, at)  # type: ignore[arg-type]

    def draft(self, draft: Draft, at: tuple[int, int]) -> None:
        """One draft, cleaned and kept or refused."""
        kept, refusals = self.cleaner.clean(draft, self.hits)
        for refusal in refusals:
            self.refuse(refusal, at)
        if kept:
            self.keep(draft, at)

    def scan(self) -> Scan | None:
        from .fastpath import scan

        head = _note(Origin(self.shard.source, self.shard.file, "", 0))
        return scan(self.shard, self.source, self.options, head.removesuffix(b'","turn":0}'))

    def take(self, found: Scan) -> None:
        """The scan's rows and, at their places among them, the records and rows it left."""
        splits = found.splits(self.shard.data, self.split_of)
        units = 2 if self.source.units else 1
        index = found.index(splits, units, origins=self.keeps_origins)
        done = 0
        for row, number, what in found.left():
            self.put(found.slices(done, row, splits), index[done:row])
            if type(what) is Draft:
                self.draft(what, found.places[number])
                done = row + 1
            else:
                self.record(what, found.places[number])
                done = row
        self.put(found.slices(done, len(index), splits), index[done:])
        self.counts.records = len(found.records)
        self.counts.units += units * len(index)
        if crlfs := found.newlines():
            self.hits["newlines"] += crlfs

    def put(self, slices: Iterable[tuple[int, memoryview, memoryview]], index: Index) -> None:
        """Rows as they are: their lines and origins by split, and their index."""
        for split, lines, origins in slices:
            self.lines[split].append(lines)
            if self.keeps_origins:
                self.origins[split].append(origins)
        self.places.append(index.tobytes())
        self.counts.kept += int(index["units"].sum())

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
        chars = len(instruction), len(context), len(response)
        passage = context.encode() if chars[1] >= PASSAGE else b""
        if draft.history or draft.system:
            chars = _lengths(draft)
        split = self.split_of((draft.group or instruction).encode("utf-8", "replace"))
        units = draft.units
        digest = xxhash.xxh3_128_intdigest(line)
        high = digest >> 64
        leak = xxhash.xxh3_64_intdigest(passage) if passage else high
        self.lines[split] += (line, b"\n")
        if origin:
            self.origins[split] += (origin, b"\n")
        self.places.append(
            PACK(
                high, digest & LOW, leak, *at, len(line) + 1, len(origin) + 1, *chars, units, split
            )
        )
        self.counts.kept += units

    def split_of(self, group: bytes) -> int:
        """The split of a group; a conversation's rows ask for the same one in a row."""
        if self.split is not None:
            return self.split
        if group != self.group[0]:
            below = xxhash.xxh3_64_intdigest(group) < self.limit
            self.group = group, VALIDATION if below else TRAIN
        return self.group[1]

    def part(self) -> Part:
        self.counts.rejected = len(self.rejected)
        self.counts.refused = dict(sorted(self.refused.items()))
        self.counts.hits = dict(sorted(self.hits.items()))
        index = np.frombuffer(b"".join(self.places), INDEX)
        self.counts.rows = len(index)
        return Part(
            rows={split: b"".join(lines) for split, lines in self.lines.items()},
            origins={split: b"".join(lines) for split, lines in self.origins.items()},
            rejected=b"\n".join([*self.rejected, b""]) if self.rejected else b"",
            index=index,
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
