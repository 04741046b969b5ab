"""lm-eval's scores through the API beside those of its own `hf` model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.client_flows import HERE, OPENAI_2
from support.client_servers import ROOT, servers

pytestmark = pytest.mark.clients
MODEL = Path(os.environ.get("KODOLLY_TEST_MODEL", ROOT / ".kodolly/models/smollm2-135m-instruct"))
TASK = HERE / "flows" / "lm_eval_task.py"
# lm-eval's `hf` needs torch, which only this environment has; what else it needs comes from the clients'.
BESIDE = """\
import glob, runpy, sys
sys.path += glob.glob(sys.argv.pop(1) + "/lib/python3*/site-packages")
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def scores(argv: list[str], kind: str, args: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The line that the script prints."""
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()} | {
        "OPENAI_API_KEY": "none",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    done = subprocess.run(
        [*argv, kind, json.dumps(args)],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"scores"')]
    assert lines, done.stderr[-3000:]
    made: dict[str, Any] = json.loads(lines[0])["scores"]
    return made


def test_scores_are_those_of_the_model_itself(tmp_path: Path) -> None:
    """Log-likelihoods agree to 1e-4, the generated text to the letter, and so the metrics.

    Where the last token ends within a character, `hf` writes U+FFFD for it and the API nothing.
    """
    local = {"pretrained": str(MODEL), "dtype": "float32", "device": "cpu", "max_length": 512}
    expected = scores(
        [sys.executable, "-c", BESIDE, str(OPENAI_2), str(TASK)], "hf", local, tmp_path
    )
    with servers(tmp_path, MODEL) as running:
        server = running.transformers()
        remote = {
            "model": server.model,
            "base_url": f"{server.url}/v1/completions",
            "tokenizer": str(MODEL),
            "tokenizer_backend": "huggingface",
            "max_length": 512,
            "max_retries": 1,
        }
        python = str(OPENAI_2 / "bin" / "python")
        made = scores([python, str(TASK)], "local-completions", remote, tmp_path)

    assert made["generation"]["metrics"] == expected["generation"]["metrics"]
    texts = [text.rstrip("\ufffd") for text in expected["generation"]["answers"]]
    assert made["generation"]["answers"] == texts
    assert made["choice"]["metrics"] == expected["choice"]["metrics"]
    pairs = zip(made["choice"]["answers"], expected["choice"]["answers"], strict=True)
    for (value, greedy), (own, own_greedy) in pairs:
        assert float(value) == pytest.approx(float(own), abs=1e-4)
        assert greedy == own_greedy
