"""From outcomes, faults and journals to figures: totals, a line for each fault, the Markdown."""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos.checks import explain
from benchmarks.chaos.clients import Crowd, Outcome
from benchmarks.chaos.faults import Fault
from benchmarks.chaos.watch import Watch

EXAMPLES = 10
OURS = re.compile(r"chaos-\d+-\d+")


@dataclass(frozen=True, slots=True)
class Line:
    """One request as it reached an engine: when, whose, and how much of the answer it brought."""

    time: float
    worker: str
    number: str
    had: int


@dataclass(slots=True)
class Totals:
    """The figures of the whole run."""

    requests: int = 0
    failures: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    lost_characters: int = 0
    doubled_characters: int = 0
    other_characters: int = 0
    lost_tokens: int = 0
    doubled_tokens: int = 0
    wrong: dict[str, int] = field(default_factory=dict)
    resumed: int | None = None
    retried: int | None = None
    moved: dict[str, int] = field(default_factory=dict)
    killed_open: int = 0  # answers open at an API process when it was killed
    killed_lost: int = 0

    @property
    def good(self) -> bool:
        """Whether the target is met: no failure, nothing lost, doubled or wrong."""
        characters = self.lost_characters + self.doubled_characters + self.other_characters
        return not (self.failures or characters or self.wrong) and not (
            self.lost_tokens or self.doubled_tokens
        )


@dataclass(slots=True)
class Row:
    """One fault's figures, in seconds from the fault (out) or from its mending (back, served)."""

    kind: str
    target: str
    at: float
    failures: int
    resumed: int | None
    silence: float
    harmed: int
    harmed_until: float | None
    out: float | None
    back: float | None
    served: float | None
    drained: float | None


def journals(paths: dict[str, Path]) -> list[Line]:
    """All requests that reached scripted engines; worker's URL -> its journal."""
    lines = []
    for worker, path in paths.items():
        text = path.read_text() if path.exists() else ""
        for line in text.splitlines():
            entry = json.loads(line)
            if ours := OURS.match(entry["id"] or ""):
                lines.append(Line(entry["time"], worker, ours[0], entry["had"]))
    return sorted(lines, key=lambda line: line.time)


def totals(crowd: Crowd, faults: Sequence[Fault], lines: Sequence[Line] | None) -> Totals:
    """Everything added up. Answers that a killed API process took with it are counted apart."""
    made = Totals(moved=dict(crowd.moved))
    killed = {number for fault in faults for number in fault.killed_with}
    kinds: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for outcome in crowd.outcomes:
        made.requests += 1
        if outcome.failed and outcome.number in killed:
            made.killed_lost += 1
        elif outcome.failed:
            kinds[f"{outcome.answer.error} ({_way(outcome)})"] += 1
        made.lost_characters += outcome.verdict.lost
        made.doubled_characters += outcome.verdict.doubled
        made.other_characters += outcome.verdict.other
        made.lost_tokens += outcome.verdict.lost_tokens
        made.doubled_tokens += outcome.verdict.doubled_tokens
        # A connection that broke may have broken inside an event.
        if not outcome.failed:
            wrong.update(f"{text} ({outcome.ask.name})" for text in outcome.verdict.wrong)
    made.failures, made.kinds, made.wrong = kinds.total(), dict(kinds), dict(wrong)
    made.killed_open = len(killed)
    if lines is not None:
        times = Counter(line.number for line in lines)
        went_on = {line.number for line in lines if line.had}
        made.resumed = len(went_on)
        made.retried = sum(count > 1 for number, count in times.items() if number not in went_on)
    return made


def _way(outcome: Outcome) -> str:
    return "not streamed" if outcome.ask.way == "whole" else "stream"


def rows(
    crowd: Crowd,
    faults: Sequence[Fault],
    lines: Sequence[Line] | None,
    watch: Watch,
    slow: float,
) -> list[Row]:
    """One row a fault; what happens until the next fault is put down to it."""
    starts = [fault.at for fault in faults[1:]] + [float("inf")]
    killed = {number for fault in faults for number in fault.killed_with}
    pairs = zip(faults, starts, strict=True)
    return [_row(crowd, fault, killed, end, lines, watch, slow) for fault, end in pairs]


def _row(
    crowd: Crowd,
    fault: Fault,
    killed: set[str],
    end: float,
    lines: Sequence[Line] | None,
    watch: Watch,
    slow: float,
) -> Row:
    counted = [o for o in crowd.outcomes if o.number not in killed or not o.failed]
    failed = [o for o in counted if o.failed and fault.at <= o.end < end]
    harmed = [o for o in counted if fault.at <= _harmed_at(o, slow) < end]
    streams = [o for o in crowd.outcomes if o.ask.way != "whole"]
    gaps = [o.gap for o in streams if fault.at <= o.gap_at + o.gap < end]
    resumed = served = None
    mended = fault.mended or fault.at
    if lines is not None:
        during = [line for line in lines if fault.at <= line.time < end]
        resumed = len({line.number for line in during if line.had})
        after = [x.time for x in lines if x.worker == fault.url and x.time > (fault.back or end)]
        served = after[0] - mended if after and fault.back else None
    out = watch.first(fault.url, fault.at, ready=False)
    return Row(
        fault.kind,
        fault.target,
        fault.at,
        len(failed),
        resumed,
        max(gaps, default=0.0),
        len(harmed),
        max(0.0, *(o.start - fault.at for o in harmed)) if harmed else None,
        None if out is None or fault.target[0] != "w" else out - fault.at,
        None if fault.back is None else fault.back - mended,
        served,
        None if fault.ended is None else fault.ended - fault.at,
    )


def _harmed_at(outcome: Outcome, slow: float) -> float:
    """When a request had waited too long, else when a failed one was asked; never: infinity.

    One that was asked just before a fault, and waited, waited because of that fault.
    """
    if _wait(outcome) > slow:
        return outcome.start + slow
    return outcome.start if outcome.failed else math.inf


def _wait(outcome: Outcome) -> float:
    # The first byte of an answer that is not streamed is its last.
    if outcome.ask.way == "whole":
        return 0.0
    return (outcome.first or outcome.end) - outcome.start


def text(made: Totals, faults: Sequence[Row], facts: dict[str, Any]) -> str:
    """The Markdown of a run."""
    resumed = "not known" if made.resumed is None else f"{made.resumed:,}"
    retried = "not known" if made.retried is None else f"{made.retried:,}"
    figures = [
        ("requests", f"{made.requests:,}"),
        ("failures", f"{made.failures:,}{_list(made.kinds)}"),
        ("characters lost", f"{made.lost_characters:,}"),
        ("characters doubled", f"{made.doubled_characters:,}"),
        ("characters that belong nowhere", f"{made.other_characters:,}"),
        ("token ids lost", f"{made.lost_tokens:,}"),
        ("token ids doubled", f"{made.doubled_tokens:,}"),
        ("answers wrong in another way", f"{sum(made.wrong.values()):,}{_list(made.wrong)}"),
        ("streams continued on another worker", resumed),
        ("requests tried again before an answer began", retried),
        (
            "connections tried at the other API process",
            f"{sum(made.moved.values()):,}{_list(made.moved)}",
        ),
        (
            "lost with a killed API process (not among the failures)",
            f"{made.killed_lost:,} of {made.killed_open:,} open there",
        ),
    ]
    out = [facts["head"], "", *table(["", "figure"], figures), ""]
    names = [
        "fault", "of", "failures", "streams continued", "longest silence", "new requests harmed",
        "harmed until", "out of rotation", "back after mending", "serves again", "drained in",
    ]  # fmt: skip
    body = [
        (
            row.kind, row.target, str(row.failures), "" if row.resumed is None else str(row.resumed),
            _s(row.silence), str(row.harmed), _s(row.harmed_until), _s(row.out), _s(row.back),
            _s(row.served), _s(row.drained),
        )
        for row in faults
    ]  # fmt: skip
    out += table(names, body)
    if facts["skipped"]:
        out += ["", *(f"Skipped: {kind}: {why}" for kind, why in facts["skipped"].items())]
    return "\n".join([*out, ""])


def examples(crowd: Crowd) -> list[dict[str, Any]]:
    """The first answers that were not right, with what was lost and what was said twice."""
    bad = [o for o in crowd.outcomes if not o.verdict.clean and not o.failed]
    return [
        {
            "request": o.number,
            "kind": o.ask.name,
            "at": o.start,
            "longest_silence": round(o.gap, 2),
            "wrong": o.verdict.wrong,
            "differences": explain(o.ask, o.answer),
        }
        for o in bad[:EXAMPLES]
    ]


def as_json(made: Totals, table: Sequence[Row], facts: dict[str, Any]) -> str:
    """The same for machines."""
    whole = {**facts, "totals": asdict(made), "faults": [asdict(row) for row in table]}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _list(kinds: dict[str, int]) -> str:
    said = ", ".join(f"{n} x {kind}" for kind, n in sorted(kinds.items(), key=lambda x: -x[1])[:8])
    return f": {said}" if said else ""


def table(names: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; all columns but the first are numbers."""
    rule = ["---"] + ["---:"] * (len(names) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (names, rule, *body)]


def _s(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f} s"
