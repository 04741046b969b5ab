"""`kodolly plan --measure` beside the training that it foretells, for the two small recipes, one after the other.

    python -m benchmarks.train.plan_beside_run

Prints a table. Exits with 1 where a step's time, the run's time or its memory is off by more than a quarter. Other
work on the machine between the two commands shows in the figures of time: run it on a quiet one.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPES = ("tiny-neox-lora", "tiny-llama-full")
ROWS = 120  # about forty steps
MOST_OFF = 0.25
SETTINGS = {
    "data.train": "rows.jsonl",
    "data.max_length": "96",
    "data.validation_share": "0.25",
    "train.batch_size": "2",
    "train.epochs": "1",
    "train.report_to": "[]",
}


def kodolly(place: Path, *words: str) -> str:
    """The standard output of a command. Raises CalledProcessError where it fails."""
    command = [sys.executable, "-m", "kodolly", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=place, stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    return done.stdout


def figures(place: Path, name: str) -> dict[str, tuple[float, float]]:
    """Of each figure the planned and the real value: seconds and bytes."""
    flags = [f"--set={key}={value}" for key, value in SETTINGS.items()]
    planned = json.loads(
        kodolly(place, "plan", name, *flags, "--gpus=1", "--measure", "--json")
    )["this_machine"]["measured"]  # fmt: skip
    kodolly(place, "train", name, *flags, "--quiet", "--out", f"run-{name}")
    real = json.loads((place / f"run-{name}" / "run.json").read_text())["metrics"]
    return {
        "a step, s": (planned["step_seconds"], real["step_seconds"] / real["steps"]),
        "the run, s": (planned["hours"] * 3600, real["train_seconds"]),
        "memory, bytes": (planned["memory"], real["peak_memory_bytes"]),
    }


def main() -> int:
    """Measure both recipes; 0 where every figure is near enough."""
    worst = 0.0
    sys.stdout.write("| recipe | figure | planned | real | off |\n|---|---|---:|---:|---:|\n")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        row = {"instruction": "한국의 수도는 어디인가요?", "context": "", "response": "서울입니다."}
        line = json.dumps(row | {"category": "open_qa"}, ensure_ascii=False)
        numbered = (line.replace("어디", f"{n}번째로 어디") for n in range(ROWS))
        (place / "rows.jsonl").write_text("\n".join(numbered) + "\n", encoding="utf-8")
        kodolly(place, "fetch", "--model", "tiny-llama")
        for name in RECIPES:
            for figure, (planned, real) in figures(place, name).items():
                off = abs(planned / real - 1)
                worst = max(worst, off)
                sys.stdout.write(
                    f"| {name} | {figure} | {planned:.4g} | {real:.4g} | {off:.0%} |\n"
                )
                sys.stdout.flush()
    return int(worst > MOST_OFF)


if __name__ == "__main__":
    sys.exit(main())
