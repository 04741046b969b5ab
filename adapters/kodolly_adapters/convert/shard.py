"""Converts a shard into a part.

The result depends only on the arguments, so that any number of processes or machines can do it in any order.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import chain
from typing import Any

import msgspec
import numpy as np
import xxhash

from .cleaning.clean import Cleaner
from .cleaning.rules import DROP, OFF, modes_of
from .dedupe import signatures_of
from .options import Options
from .part import INDEX, Counts, Index, Mark, Part
from .reading.records import Shard, decode, places
from .reading.source import Source
from .schema import TRAIN, VALIDATION, Draft, Origin, RejectedLine, Rejection, Row

encode = msgspec.json.Encoder().encode
# The number of a row's record; characters of its questions, contexts (a system message is one) and answers;
# its units, its split, and the hash of a long context (0: it has none).
Entry = tuple[int, int, int, int, int, int, int]
PASSAGE = 100  # characters; two rows with the same context of this length or more are leakage
DEV = re.compile(r"(?<![a-z])(dev|val|valid|validation|test)(?![a-z])")
TRAINING = re.compile(r"(?<![a-z])train(ing)?(?![a-z])")


def convert_shard(shard: Shard, source: Source, options: Options) -> Part:
    """Convert every record of `shard` to rows, or to lines of rejected.jsonl.

    Raises InputError, which names file and byte, where the shard cannot be decoded.
    """
    return _Conversion(shard, source, options).part()


class _Conversion:
    """A part while it grows. `lines`, `entries`, `texts` and `origins` have one element for each kept row."""

    def __init__(self, shard: Shard, source: Source, options: Options) -> None:
        self.shard, self.source, self.options = shard, source, options
        records = decode(shard, source, keep_going=options.keep_going)
        self.places = places(shard, source, len(records))
        modes = modes_of(options.rules, source.rules)
        self.cleaner = Cleaner(modes, options)
        self.official = official_split(shard.file) if options.splits == "official" else None
        self.validation = int(options.validation * 2**64)  # groups with a smaller hash go there
        self.units_in = 0
        self.hits: Counter[str] = Counter()
        self.rejections: Counter[str] = Counter()
        self.rejected: list[bytes] = []
        self.lines: list[bytes] = []
        self.entries: list[Entry] = []
        compares = modes["near-duplicate"] != OFF
        self.texts: list[list[str]] | None = [] if compares else None  # each row's words
        drops = DROP in (modes["duplicate"], modes["near-duplicate"], modes["leakage"])
        self.origins: list[bytes] | None = [] if options.provenance or drops else None
        for number, record in enumerate(records):
            self.convert(record, number)

    def convert(self, record: Any, number: int) -> None:
        """Convert one record, whose index in the shard is `number`."""
        if type(record) is Rejection:
            self.units_in += 1
            self.reject(record, number)
            return
        self.units_in += self.source.units(record) if self.source.units else 1
        for item in self.source.drafts(record, self.options):
            if isinstance(item, Rejection):
                self.reject(item, number)
                continue
            is_row, rejections = self.cleaner.clean(item, self.hits)
            for rejection in rejections:
                self.reject(rejection, number)
            if is_row:
                self.keep(item, number)

    def reject(self, rejection: Rejection, number: int) -> None:
        self.rejections[rejection.reason] += rejection.units
        byte, line = self.places[number].tolist()
        reason, detail, id_, turn, _ = rejection
        note = RejectedLine(
            self.shard.file, line, byte, self.shard.source, id_, turn, reason, detail
        )
        self.rejected.append(_encode_note(note) + b"\n")

    def keep(self, draft: Draft, number: int) -> None:
        question, context, answer = draft.instruction, draft.context, draft.response
        if self.options.conversations:
            line = encode(draft.as_dialogue())
        else:
            line = self.cleaner.line or encode(Row(question, context, answer, draft.category))
        self.lines.append(line)
        questions, contexts, answers = len(question), len(draft.system) + len(context), len(answer)
        for pair in draft.history:
            questions += len(pair.instruction)
            contexts += len(pair.context)
            answers += len(pair.response)
        leak = xxhash.xxh3_64_intdigest(context.encode()) if len(context) >= PASSAGE else 0
        split = self.split_of(draft.group or question)
        self.entries.append((number, questions, contexts, answers, draft.units, split, leak))
        if self.origins is not None:
            origin = Origin(self.shard.source, self.shard.file, draft.id, draft.turn)
            self.origins.append(_encode_note(origin))
        if self.texts is not None:
            messages = draft.as_dialogue().messages
            texts = chain.from_iterable((one.content, one.context) for one in messages)
            self.texts.append(" ".join(texts).split())

    def split_of(self, group: str) -> int:
        """The split of a group; all its rows go to the same one."""
        if self.official is not None:
            return self.official
        digest = xxhash.xxh3_64_intdigest(group.encode("utf-8", "replace"))
        return VALIDATION if digest < self.validation else TRAIN

    def part(self) -> Part:
        shard, index = self.shard, self.index()
        counts = Counts(
            records=len(self.places),
            units=self.units_in,
            rows=len(self.lines),
            kept_units=int(index["units"].sum()),
            rejections=dict(sorted(self.rejections.items())),
            rejected_lines=len(self.rejected),
        )
        hits = dict(sorted(self.hits.items()))
        return Part(
            mark=Mark(shard.file, shard.source, shard.identity, counts, hits),
            index=index,
            rows=_as_lines(self.lines),
            origins=_as_lines(self.origins or []),
            rejected=b"".join(self.rejected),
            signatures=None if self.texts is None else signatures_of(self.texts),
        )

    def index(self) -> Index:
        index = np.zeros(len(self.lines), INDEX)
        entries = np.array(self.entries, np.uint64).reshape(len(self.lines), 7)
        digests = b"".join(map(xxhash.xxh3_128_digest, self.lines))
        index["hash"] = np.frombuffer(digests, ">u8").reshape(-1, 2)
        index["offset"], index["line"] = self.places[entries[:, 0].astype(int)].T
        index["size"] = np.fromiter(map(len, self.lines), np.uint32, len(self.lines)) + 1
        index["chars"] = entries[:, 1:4]
        index["units"], index["split"], leaks = entries[:, 4:].T
        index["leak"] = np.where(leaks, leaks, index["hash"][:, 0])
        return index


def official_split(file: str) -> int:
    """The split that a file's name (without folders) says; the zip's name if its member's says none."""
    archive, _, member = file.lower().rpartition("!")
    for name in (member, archive):
        last = name.rpartition("/")[2]
        if DEV.search(last):
            return VALIDATION
        if TRAINING.search(last):
            return TRAIN
    return TRAIN


def _as_lines(lines: list[bytes]) -> bytes:
    return b"\n".join([*lines, b""]) if lines else b""


def _encode_note(note: RejectedLine | Origin) -> bytes:
    """The JSON of a line about a row; half a surrogate pair, in an id for example, becomes `?`."""
    try:
        return encode(note)
    except UnicodeEncodeError:
        fields = msgspec.structs.asdict(note)
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        return line.encode("utf-8", "replace")
