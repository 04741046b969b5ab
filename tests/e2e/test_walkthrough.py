"""docs/walkthrough.md, run as it is written: from a raw file to a Korean answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from support.processes import free_port, wait_until
from support.shared_data import ROOT, SHARED_DATA, needs_shared_data

pytestmark = [pytest.mark.stack, needs_shared_data]

PAGE = ROOT / "docs" / "walkthrough.md"
PORTS = ("api", "controller", "worker")


def commands() -> list[str]:
    """The page's shell blocks, in their order."""
    return re.findall(
        r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def test_every_command_of_the_page_works(tmp_path: Path) -> None:
    """In an empty folder with the raw file, each block succeeds, and the last one gets the first row's answer."""
    data = tmp_path / "downloads"
    data.mkdir()
    shutil.copy(SHARED_DATA / "chatbot_data" / "ChatbotData.csv", data)
    ports = {f"KODOLLY_UP_{name.upper()}_PORT": str(free_port()) for name in PORTS}
    script = "\n".join(["set -euo pipefail", *commands()])
    script = script.replace(":8000", f":{ports['KODOLLY_UP_API_PORT']}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log, printed = tmp_path / "log", tmp_path / "printed"
    with log.open("wb") as errors, printed.open("wb") as output:
        walk = subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path, env=os.environ | ports | {"PATH": path, "OMP_NUM_THREADS": "1"},
            stdout=output, stderr=errors, start_new_session=True,
        )  # fmt: skip
        try:
            assert walk.wait(900) == 0, log.read_text()[-3000:]
        finally:
            with suppress(ProcessLookupError):  # all have ended
                os.killpg(walk.pid, signal.SIGTERM)
            walk.wait()
    wait_until(lambda: "no process left" in log.read_text(), 60, what="the end of `kodolly up`")
    text = printed.read_text()
    answer = json.loads(text[text.rindex('{"id"') :].splitlines()[0])
    row = (tmp_path / "rows" / "train.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert answer["choices"][0]["message"]["content"] == json.loads(row)["response"]
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert row in text  # of `head`
    assert "measured in 20 steps" in text


def test_the_page_has_about_ten_commands() -> None:
    """A walk that grows is no longer one; the recipe's lines are not counted."""
    text = re.sub(r"<<'TOML'\n.*?^TOML$", "", "".join(commands()), flags=re.MULTILINE | re.DOTALL)
    text = text.replace("|\n", "|")
    assert len([line for line in text.splitlines() if line.strip()]) <= 10
