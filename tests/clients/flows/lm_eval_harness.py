"""lm-eval's `local-completions`: a multiple choice task, which reads log probabilities, and one that generates."""

from __future__ import annotations

import os
from typing import Any

from flow import KEY, MODEL, URL, run
from lm_eval_task import evaluate


def _evaluate(kind: str) -> dict[str, Any]:
    os.environ["OPENAI_API_KEY"] = KEY
    args = {
        "model": MODEL,
        "base_url": f"{URL}/v1/completions",
        "tokenizer": os.environ["CLIENT_TOKENIZER"],
        "tokenizer_backend": "huggingface",
        "max_length": 512,
        "max_retries": 1,
    }
    metrics: dict[str, Any] = evaluate(kind, "local-completions", args)["metrics"]
    return metrics


def multiple_choice() -> None:
    assert 0 <= _evaluate("choice")["acc,none"] <= 1


def generation() -> None:
    assert "exact_match,none" in _evaluate("generation")


if __name__ == "__main__":
    run(globals())
