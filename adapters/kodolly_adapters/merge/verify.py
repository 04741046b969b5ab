"""The merge checked by others' code, in a process of its own that gives its memory back when it ends.

Tensors: drawn ones are merged again by PEFT itself and must be equal to the last bit. Tokens: the merged
model writes greedy answers, and base and adapter under PEFT must choose the same; large weights stay on disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import OutputError

from .plan import Plan

# glibc gives freed tensors back at once; else what it keeps of them is a fifth of the check's memory.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
LIMIT = 7200.0  # seconds; greedy answers of a large model on a slow CPU


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was compared and found equal. `skipped` says why no tokens were compared, "" when they were."""

    tensors: int
    rows: int
    tokens: int
    ties: int  # answers that part where two tokens are equally likely within rounding
    logits: float  # rms difference of the logits as a share of their spread
    skipped: str
    peak: int  # bytes of the checking process

    def as_json(self) -> dict[str, Any]:
        """For the manifest; without what differs from run to run."""
        return {key: value for key, value in asdict(self).items() if key != "peak"}

    @classmethod
    def of(cls, values: dict[str, Any] | None) -> Verdict | None:
        """From the manifest."""
        return None if values is None else cls(**{"peak": 0, **values})

    def lines(self) -> list[str]:
        """For people."""
        lines = [
            f"verified: {self.rows:,} rows of {self.tensors:,} tensors are PEFT's own merge to the last bit"
        ]
        if self.skipped:
            return [*lines, f"greedy tokens not compared: {self.skipped}"]
        tie = f" ({self.ties} answers part at a tie within rounding)" if self.ties else ""
        lines.append(
            f"verified: {self.tokens:,} greedy tokens of base + adapter and merged are equal{tie}; "
            f"logits differ by {self.logits:.2e} of their spread"
        )
        return lines


def verify(plan: Plan, out: Path, seed: str) -> Verdict:
    """Check the merged files in `out`; `seed` draws the tensors.

    Raises OutputError naming the tensor or the prompt that differs.
    """
    wish = {
        "base": str(plan.base.directory),
        "adapter": str(plan.adapter),
        "out": str(out),
        "dtype": plan.flag,
        "export": plan.export,
        "seed": seed,
    }
    env = {**ENVIRONMENT, **os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "kodolly_adapters.merge.verify_child"],
        input=json.dumps(wish),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=env,
        check=False,
    )
    if child.returncode != 0:
        tail = (child.stderr.strip().splitlines() or ["it was killed: out of memory?"])[-1]
        raise OutputError(
            f"{out}: the check ended with an error: {tail}. --no-verify goes on without it"
        )
    answer = json.loads(child.stdout.strip().splitlines()[-1])
    if fault := answer.pop("fault", ""):
        raise OutputError(f"{out}: the check found a fault: {fault}")
    return Verdict(**answer)
