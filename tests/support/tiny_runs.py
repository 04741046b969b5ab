"""Small training runs: bases, rows that can be learned by heart, and recipes for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.tiny_models import make_tiny_llama, make_tiny_neox
from support.tuning_rows import dolly, write_lines

from kodolly_adapters.train.recipe import Recipe

MAKERS = {"neox": make_tiny_neox, "llama": make_tiny_llama}
ROWS = [
    dolly("대한민국의 수도는 어디입니까?", "서울입니다."),
    dolly("오늘은 날씨가 어떻습니까?", "맑고 바람이 조금 붑니다."),
    dolly("김치찌개에 무엇을 넣습니까?", "김치와 두부, 돼지고기를 넣습니다."),
    dolly("학교에 어떻게 갑니까?", "버스를 타고 갑니다.", "버스를 타고 학교에 가면 이십 분이 걸립니다."),
    dolly("책을 몇 권 빌렸습니까?", "두 권 빌렸습니다.", "어제 도서관에서 책을 두 권 빌렸습니다."),
    dolly("한강은 어디에 흐릅니까?", "서울에 흐릅니다."),
]  # fmt: skip


def rows_file(place: Path, times: int = 4) -> str:
    """The rows, each `times` over, as a file in `place`."""
    return write_lines(place / "rows.jsonl", ROWS * times)


def toy(base: Path, rows: str, **changes: Any) -> Recipe:
    """A recipe of a few seconds; `changes` are keys with __ for the dot, such as train__epochs=1."""
    values: dict[str, Any] = {
        "name": "toy",
        "base": str(base),
        "data": {"train": [rows], "validation": [rows], "max_length": 256},
        "lora": {"r": 8, "alpha": 16},
        "train": {
            "max_steps": 8,
            "learning_rate": 3e-3,
            "batch_size": 4,
            "accumulation": 1,
            "gradient_checkpointing": False,
            "eval_steps": 4,
            "report_to": [],
        },
    }
    for key, value in changes.items():
        table, _, leaf = key.rpartition("__")
        (values.setdefault(table, {}) if table else values)[leaf] = value
    return Recipe.model_validate(values)


def metrics_of(out: Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses_of(out: Path, key: str = "loss") -> list[float]:
    """One loss a step, or with "eval_loss" one an evaluation."""
    return [record[key] for record in metrics_of(out) if key in record]
