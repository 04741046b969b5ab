"""From first tokens and a batch's lines to figures, and what of them is not as it must be."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.batch.job import Verdict
from benchmarks.batch.plan import MOST

BEFORE, WITH, KILLED, AFTER = "before", "with the batch", "kills", "after"


@dataclass(slots=True)
class Run:
    """One run. First tokens are seconds by phase; `pace`: the batch's requests a second.

    `left`: requests that were open at the second kill.
    """

    head: str
    first_tokens: Mapping[str, Sequence[float]]
    failures: Mapping[str, Sequence[str]]
    verdict: Verdict
    status: str
    pace: float
    left: int

    @property
    def quiet(self) -> list[float]:
        """First tokens without the batch."""
        return [*self.first_tokens[BEFORE], *self.first_tokens[AFTER]]

    @property
    def ratio(self) -> float:
        """The 99th percentile of first tokens with the batch, by that without it."""
        return percentile(self.first_tokens[WITH], 0.99) / percentile(self.quiet, 0.99)

    def faults(self) -> list[str]:
        """What is not as it must be, in words."""
        verdict = self.verdict
        counts = {"lost": verdict.lost, "doubled": verdict.doubled, "wrong": verdict.wrong}
        faults = [
            f"{count} requests of the batch {name}" for name, count in counts.items() if count
        ]
        if self.status != "completed":
            faults.append(f"the batch is {self.status}")
        for phase in (BEFORE, WITH, AFTER):
            if failed := self.failures.get(phase):
                faults.append(f"{len(failed)} live requests failed ({phase}): {failed[0]}")
        if not self.left:
            faults.append("the batch was over before the second kill")
        if not self.ratio <= MOST:
            faults.append(f"first tokens came {self.ratio:.2f} times as late: at most {MOST}")
        return faults


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all is not above; infinity of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.inf


def text(run: Run) -> str:
    """The Markdown of a run."""
    lines = [
        run.head,
        "",
        "| live requests | number | first token p50 | p99 |",
        "|---|---:|---:|---:|",
    ]
    for name, values in (("without the batch", run.quiet), (WITH, run.first_tokens[WITH])):
        p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
        lines.append(f"| {name} | {len(values):,} | {p50 * 1000:.0f} ms | {p99 * 1000:.0f} ms |")
    verdict = run.verdict
    figures = [
        ("p99 with the batch by p99 without it", f"{run.ratio:.2f}"),
        ("the batch's requests a second beside the live ones", f"{run.pace:.1f}"),
        ("requests of the batch lost", f"{verdict.lost}"),
        ("doubled", f"{verdict.doubled}"),
        ("with another answer than they must have", f"{verdict.wrong}"),
        ("sent to an engine again after a kill", f"{verdict.sent_again}"),
        ("live requests that two kills broke", f"{len(run.failures.get(KILLED, ()))}"),
    ]
    lines += [
        "",
        "| | figure |",
        "|---|---:|",
        *(f"| {name} | {value} |" for name, value in figures),
    ]
    lines += ["", *(run.faults() or ["Everything is as it must be."])]
    return "\n".join([*lines, ""])


def as_json(run: Run) -> str:
    """The same for machines."""
    whole = asdict(run) | {"ratio": run.ratio, "faults": run.faults()}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
