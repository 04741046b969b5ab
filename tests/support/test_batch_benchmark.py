"""The batch benchmark's own judgement: of a batch's lines, and of the live requests beside it."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loader of the benchmark's modules: benchmarks/ is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"benchmarks.batch.{name}")

    return load


def test_lost_doubled_and_wrong_lines_are_counted(batch: Any, tmp_path: Path) -> None:
    """One line a request with the script's text is right; an error line is another answer."""
    job = batch("job")
    messages = [{"role": "user", "content": "요약"}]
    bodies = {f"r{number}": {"messages": messages, "max_tokens": 5} for number in range(4)}
    script = job.Script(model="demo", **batch("plan").SCRIPT)
    text = job._wanted(script, bodies["r0"])

    def line(name: str, said: str) -> dict[str, Any]:
        body = {"choices": [{"message": {"content": said}}]}
        return {"custom_id": name, "response": {"body": body}}

    right = [line(name, text) for name in bodies]
    assert job.judge(bodies, right) == job.Verdict(lost=0, doubled=0, wrong=0)
    bad = [line("r0", text), line("r0", text), line("r1", "다른 말"), {"custom_id": "r2"}]
    assert job.judge(bodies, bad) == job.Verdict(lost=1, doubled=1, wrong=2)

    journal = tmp_path / "journal"
    journal.write_text("".join(json.dumps({"id": f"batch_1-{n}"}) + "\n" for n in (1, 2, 1)))
    assert job.sent_again([journal], "batch_1") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"lost": 1}, "1 requests of the batch lost"),
        ({"doubled": 2}, "2 requests of the batch doubled"),
        ({"status": "cancelled"}, "the batch is cancelled"),
        ({"failures": {"before": ["x"]}}, "1 live requests failed (before): x"),
        ({"failures": {"kills": ["x"]}}, ""),  # what a kill breaks is counted, and no fault
        ({"left": 0}, "over before the second kill"),
        ({"late": 0.13}, "1.30 times as late"),
    ],
)
def test_each_promise_is_judged(batch: Any, changes: dict[str, Any], words: str) -> None:
    """A run that keeps all has no fault; one that does not has one that says which."""
    report, job = batch("report"), batch("job")
    values = {
        "lost": 0,
        "doubled": 0,
        "status": "completed",
        "failures": {},
        "left": 9,
        "late": 0.1,
    }
    values |= changes
    times = {
        report.BEFORE: [0.1] * 50,
        report.AFTER: [0.1] * 50,
        report.WITH: [values["late"]] * 50,
    }
    verdict = job.Verdict(lost=values["lost"], doubled=values["doubled"], wrong=0)
    run = report.Run(
        "head", times, values["failures"], verdict, values["status"], 5.0, values["left"]
    )
    faults = run.faults()
    assert len(faults) == bool(words)
    assert words in "".join(faults)
    assert (faults[0] if faults else "Everything is as it must be.") in report.text(run)
    json.loads(report.as_json(run))
