"""From what was measured to a verdict, Markdown and JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.hostile.plan import FIRST_TOKEN, MEMORY

MIB = 2**20


@dataclass(slots=True)
class Phase:
    """One attack, or the quiet time before: honest streams meanwhile, and memory in bytes by process."""

    name: str
    seconds: float
    first_tokens: list[float]
    failures: list[str]
    grown: dict[str, int] = field(
        default_factory=dict
    )  # bytes of RSS beyond those of the quiet time
    attack: dict[str, Any] = field(default_factory=dict)

    def p(self, share: float) -> float:
        """A percentile of first tokens in seconds; infinite if no stream had one."""
        return percentile(self.first_tokens, share)


@dataclass(slots=True)
class Run:
    """All phases, the quiet one first."""

    head: str
    phases: list[Phase]
    tracebacks: dict[str, int]
    dead: list[str] = field(default_factory=list)
    counts_only: bool = False  # judge only what a slow or busy machine does not change

    def faults(self) -> list[str]:
        """Every bar that was not kept, in words."""
        quiet, *attacks = self.phases
        wrong = [f"{name} has ended" for name in self.dead]
        for phase in self.phases:
            if phase.failures:
                count = len(phase.failures)
                wrong.append(f"{phase.name}: {count} honest streams failed: {phase.failures[0]}")
        for phase in attacks:
            for name, count in phase.attack.get("unstated", {}).items():
                wrong.append(f"{phase.name}: {count} x {name} without a reason")
            if self.counts_only:
                continue
            if phase.p(0.99) > FIRST_TOKEN * quiet.p(0.99):
                wrong.append(
                    f"{phase.name}: first token p99 {phase.p(0.99) * 1000:.0f} ms, more than "
                    f"{FIRST_TOKEN:g} times the quiet {quiet.p(0.99) * 1000:.0f} ms"
                )
            for name, grown in phase.grown.items():
                if grown > MEMORY:
                    wrong.append(f"{phase.name}: {name} grew by {grown / MIB:.1f} MiB")
        return wrong


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all is not above; infinite of none."""
    if not values:
        return math.inf
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def text(run: Run) -> str:
    """The Markdown of a run."""
    names = list(run.phases[-1].grown)
    rows = [["attack", "s", "honest", "failed", "p50 ms", "p99 ms", *names, "answers", "notes"]]
    for phase in run.phases:
        statuses = phase.attack.get("statuses", {})
        notes = phase.attack.get("notes", {})
        rows.append(
            [
                phase.name,
                f"{phase.seconds:.0f}",
                f"{len(phase.first_tokens):,}",
                str(len(phase.failures)),
                f"{phase.p(0.5) * 1000:.0f}",
                f"{phase.p(0.99) * 1000:.0f}",
                *(f"{phase.grown[n] / MIB:+.1f} MiB" if n in phase.grown else "" for n in names),
                ", ".join(f"{count:,} x {code}" for code, count in sorted(statuses.items())),
                ", ".join(f"{name} {value:g}" for name, value in notes.items()),
            ]
        )
    table = ["| " + " | ".join(row) + " |" for row in rows]
    table.insert(1, "|" + "---|" * len(rows[0]))
    logs = ", ".join(f"{name} {count}" for name, count in run.tracebacks.items())
    faults = run.faults()
    verdict = "; ".join(faults) if faults else "every bar was kept"
    return "\n".join(
        [run.head, "", *table, "", f"Tracebacks in the logs: {logs}.", "", f"**{verdict}**", ""]
    )


def as_json(run: Run) -> str:
    """The same for machines, with examples of what must not be."""
    facts = asdict(run) | {"faults": run.faults()}
    for phase in facts["phases"]:
        phase["first_tokens"] = [round(value, 4) for value in phase["first_tokens"]]
    return json.dumps(facts, ensure_ascii=False) + "\n"
