"""Simon Willison's command line tool `llm`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from flow import KEY, MODEL, QUESTION, TOKENS, URL, run

MODELS = f"""\
- model_id: here
  model_name: {MODEL}
  api_base: {URL}/v1
"""


def _llm(*arguments: str) -> str:
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "extra-openai-models.yaml").write_text(MODELS)
        argv = [sys.executable, "-m", "llm", "-m", "here", "--key", KEY, "-o", "max_tokens"]
        done = subprocess.run(
            [*argv, str(TOKENS), *arguments, QUESTION],
            env=os.environ | {"LLM_USER_PATH": home},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.strip()


def prompt() -> None:
    assert _llm("--no-stream")


def prompt_stream() -> None:
    assert _llm()


if __name__ == "__main__":
    run(globals())
