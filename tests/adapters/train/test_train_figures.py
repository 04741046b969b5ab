"""The figures of a run hold: tokens a second, memory, the share of evaluations, and what `plan --measure` foretells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from support.tiny_runs import metrics_of, rows_file, toy
from transformers import TrainerCallback

from kodolly_adapters.train import run as run_module
from kodolly_adapters.train.callbacks import StepProgress, peak_memory
from kodolly_adapters.train.model import Hardware
from kodolly_adapters.train.run import train
from kodolly_adapters.train.trainer import Trainer, choose_validation, make_schedule

CPU = Hardware("cpu", ("some",), 1, 0, bf16=False, flash=False)
SMALL = {"data.max_length": "96", "data.validation_share": "0.25", "train.batch_size": "2"}


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Seconds from the beginning of a step until its loss is logged, by a clock of its own."""

    def __init__(self) -> None:
        self.seconds, self._begun = 0.0, 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._begun = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        self.seconds += time.monotonic() - self._begun if "loss" in logs else 0


@pytest.mark.stack
@pytest.mark.usefixtures("no_curve")
def test_tokens_a_second_are_those_of_training(
    place: Path, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within 5 % of a stopwatch over tokens counted in the rows, however long evaluations take."""
    watch, out = Stopwatch(), tmp_path / "run"
    seen: list[Dataset] = []

    def make(run: Any, *args: Any, **kwargs: Any) -> Any:
        trainer = make_trainer(run, *args, **kwargs)
        trainer.add_callback(watch)
        seen.append(run.train)
        return trainer

    make_trainer, step = run_module.make_trainer, Trainer.prediction_step

    def slowly(self: Any, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.2)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(run_module, "make_trainer", make)
    monkeypatch.setattr(Trainer, "prediction_step", slowly)
    recipe = toy(
        place / "neox", rows, data__packing=False, train__max_steps=12, train__eval_steps=2
    )
    metrics = train(recipe, out)
    tokens = 2 * sum(map(len, seen[0]["input_ids"]))  # 12 steps of 4 are the 24 rows twice
    assert metrics["tokens"] == tokens
    assert metrics["tokens_per_second"] == pytest.approx(tokens / watch.seconds, rel=0.05)
    assert metrics["eval_seconds"] >= 6 * 0.2
    steps = [record for record in metrics_of(out) if "loss" in record]
    assert sum(r["step_seconds"] for r in steps) == pytest.approx(watch.seconds, rel=0.05)
    looks = [record for record in metrics_of(out) if "eval_loss" in record]
    assert len(looks) == 6
    most = 1.01 * peak_memory()["peak_memory_bytes"]  # the kernel counts it within some pages
    assert all(50e6 < record["peak_memory_bytes"] < most for record in (*steps, *looks))


@pytest.mark.stack
def test_memory_is_that_of_this_process(tmp_path: Path) -> None:
    """A process that a large one starts does not take over its peak; what it takes itself is counted."""
    code = (
        "from kodolly_adapters.train.callbacks import peak_memory as peak\n"
        "before = peak()['peak_memory_bytes']\nheld = bytearray(200 << 20)\n"
        "print(before, peak()['peak_memory_bytes'])"
    )
    ballast = bytearray(b"x") * (1000 << 20)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    del ballast
    before, after = map(int, done.stdout.split())
    assert before < 1000 << 20
    assert 200 << 20 <= after - before < 300 << 20


def test_evaluations_take_their_share_and_no_more() -> None:
    """Ten evaluations of a run may read 2 x 10 / 90 of the sequences that it trains on, or all with a share of 1."""
    many = Dataset.from_dict({"input_ids": [[n] for n in range(1000)]})
    recipe = toy(Path("base"), "rows", data__packing=False, train={"batch_size": 4, "epochs": 1})
    schedule = make_schedule(recipe, 3600, validation=True, hardware=CPU)  # 900 passes
    assert schedule.evaluations == 10
    chosen, counts = choose_validation(many, recipe, schedule, 1)
    assert counts == {"rows": 80, "left_out": 920}
    assert chosen["input_ids"][-1][0] > 900  # drawn from all of it
    again, _ = choose_validation(many, recipe, schedule, 1)
    assert again["input_ids"] == chosen["input_ids"]
    free = toy(Path("base"), "rows", train={"batch_size": 4, "eval_share": 1.0})
    assert choose_validation(many, free, schedule, 1)[1] == {"rows": 1000, "left_out": 0}


def test_packed_rows_are_counted_as_rows() -> None:
    """What an evaluation reads is told in rows of the file, not in sequences that hold several."""
    packed = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 40, "seq_lengths": [[1, 2]] * 40})
    recipe = toy(Path("base"), "rows", train={"batch_size": 4, "epochs": 1})
    schedule = make_schedule(recipe, 36, validation=True, hardware=CPU)
    _, counts = choose_validation(packed, recipe, schedule, 1)
    assert counts == {"rows": 8, "left_out": 72}  # one batch at least


def test_an_evaluation_has_its_own_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sequences, how many are left, and training's figures beside them."""

    class Arguments:
        eval_batch_size, world_size = 4, 1

    class Loader:
        dataset = range(40)

    trainer = type("T", (), {"rate": 1234.4})()
    progress = StepProgress(trainer, show=True)
    monkeypatch.setattr("kodolly_adapters.terminal.LINE_INTERVAL", 0)  # else every ten seconds
    for _ in range(3):
        progress.on_prediction_step(Arguments, None, None, eval_dataloader=Loader)
    error = capsys.readouterr().err
    assert "kodolly train: evaluation: 8 sequences of 40 sequences" in error
    assert "s left" in error
    assert "1,234 tokens/s" in error


def _kodolly(place: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "kodolly", *words],
        cwd=place, capture_output=True, text=True, timeout=900, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.stack
@pytest.mark.parametrize("name", ["tiny-neox-lora", "tiny-llama-full"])
def test_a_measured_plan_foretells_the_run(name: str, tmp_path: Path) -> None:
    """Its steps, and memory within a quarter; that of times is measured by benchmarks/train/plan_beside_run.py."""
    rows = rows_file(tmp_path, 20)  # 120 rows, about forty steps
    flags = [f"--set={key}={value}" for key, value in (SMALL | {"data.train": rows}).items()]
    flags += ["--set=train.epochs=1", "--set=train.report_to=[]"]
    if name == "tiny-llama-full":
        _kodolly(tmp_path, "fetch", "--model", "tiny-llama")
    text = _kodolly(tmp_path, "plan", name, *flags, "--gpus=1", "--measure", "--json")
    here = json.loads(text)["this_machine"]["measured"]
    _kodolly(tmp_path, "train", name, *flags, "--quiet", "--out", "run")
    real = json.loads((tmp_path / "run/run.json").read_text())["metrics"]
    assert here["steps"] == pytest.approx(real["steps"], abs=1)
    assert here["memory"] == pytest.approx(real["peak_memory_bytes"], rel=0.25)
    assert 0 < here["step_seconds"] * here["steps"] <= here["hours"] * 3600
