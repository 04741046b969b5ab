"""deploy/setup/install_packages.py: which installer gets which settings, with a uv that only notes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "setup" / "install_packages.py"

# Notes each call's arguments and UV_* variables; behaves as UV_STUB says.
# -S: without the packages of the environment, whose paths take longer to read than the rest.
UV = f"""#!{sys.executable} -S
import json, os, sys
call = {{"arguments": sys.argv[1:]}}
call |= {{k: v for k, v in os.environ.items() if k.startswith("UV_") and k != "UV_STUB"}}
with open(os.path.join(os.path.dirname(__file__), "calls"), "a") as file:
    file.write(json.dumps(call) + "\\n")
kind = os.environ["UV_STUB"]
if "--dry-run" in sys.argv and kind != "cpu":
    sys.stderr.write(" + nvidia-cublas==13.1\\n")
if kind == "fails" or (kind == "no-cpu-index" and "--torch-backend=cpu" in sys.argv):
    sys.exit(2)
"""


class Machine:
    """A PATH with a noting uv on it, and pip settings of a file and of variables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        uv = folder / "uv"
        uv.write_text(UV)
        uv.chmod(0o755)
        self.pip_file = folder / "pip.conf"
        self.pip_file.touch()

    def install(
        self, *arguments: str, stub: str = "works", **variables: str
    ) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
        """Run the script; its result, and what uv was called with."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_"))}
        # PIP_CONFIG_FILE is read beside the files of machine and user, and wins over them.
        settings = {"PIP_CONFIG_FILE": str(self.pip_file), "UV_STUB": stub}
        env = clean | settings | {"PATH": str(self.folder)} | variables
        done = subprocess.run(
            [sys.executable, "-S", SCRIPT, sys.executable, *arguments],
            env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return done, [json.loads(line) for line in lines]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("file", "variables", "expected"),
    [
        ("[global]\nfind-links = /wheels", {}, {"UV_FIND_LINKS": "/wheels"}),
        ("[global]\nindex-url = https://a/simple", {}, {"UV_DEFAULT_INDEX": "https://a/simple"}),
        (
            "[global]\nfind-links = /wheels /more\nindex-url = https://a/simple",
            {},
            {"UV_FIND_LINKS": "/wheels,/more", "UV_DEFAULT_INDEX": "https://a/simple"},
        ),
        (
            "[global]\nextra-index-url =\n  https://b/simple\n  https://c/simple",
            {},
            {
                "UV_INDEX": "https://b/simple https://c/simple",
                "UV_INDEX_STRATEGY": "unsafe-best-match",
            },
        ),
        ("", {"PIP_FIND_LINKS": "/wheels"}, {"UV_FIND_LINKS": "/wheels"}),
        ("", {"PIP_NO_INDEX": "1"}, {"UV_NO_INDEX": "1"}),
        (
            "[global]\nindex-url = https://a/simple\n[install]\nindex-url = https://b/simple",
            {},
            {"UV_DEFAULT_INDEX": "https://b/simple"},
        ),
        (
            "[global]\nindex-url = https://a/simple",
            {"PIP_INDEX_URL": "https://c/simple"},
            {"UV_DEFAULT_INDEX": "https://c/simple"},
        ),
        (
            "[global]\nindex-url = https://a/simple",
            {"UV_DEFAULT_INDEX": "https://d/simple"},
            {"UV_DEFAULT_INDEX": "https://d/simple"},
        ),
    ],
)
def test_pips_settings_reach_uv(
    machine: Machine, file: str, variables: dict[str, str], expected: dict[str, str]
) -> None:
    """Where packages come from is the same for uv as for pip; a UV_* variable of the user's wins."""
    machine.pip_file.write_text(file)
    done, [call] = machine.install("-c", "pins.txt", "demo", **variables)

    assert done.returncode == 0
    assert call["arguments"][-3:] == ["-c", "pins.txt", "demo"]
    assert call.items() >= expected.items()


def test_settings_that_are_not_there_are_not_handed_over(machine: Machine) -> None:
    """Without an index in pip's settings uv keeps its own default."""
    _, [call] = machine.install("demo", PIP_CONFIG_FILE=os.devnull)

    assert "UV_DEFAULT_INDEX" not in call


def test_pips_constraints_reach_uv_beside_those_of_the_command(machine: Machine) -> None:
    """Constraints of pip's settings and of the command line hold together, as they do for pip."""
    machine.pip_file.write_text("[global]\nconstraint = /a.txt /b.txt")
    _, [call] = machine.install("-c", "pins.txt", "demo", PIP_CONFIG_FILE=str(machine.pip_file))
    words = call["arguments"]

    assert [words[i + 1] for i, word in enumerate(words) if word == "-c"] == [
        *("/a.txt", "/b.txt"),
        "pins.txt",
    ]


def test_torch_for_the_cpu_where_no_driver_is(machine: Machine) -> None:
    """Without nvidia-smi, torch that would bring CUDA is taken from PyTorch's CPU index, without retries."""
    done, calls = machine.install("torch")

    assert done.returncode == 0
    assert "--torch-backend=cpu" in calls[-1]["arguments"]
    assert calls[-1]["UV_HTTP_RETRIES"] == "0"


def test_the_size_is_told_where_the_cpu_index_is_out_of_reach(machine: Machine) -> None:
    """Where that index cannot be reached, one line tells the download's size, and it goes on."""
    done, calls = machine.install("torch", stub="no-cpu-index")

    assert done.returncode == 0
    assert "--torch-backend=cpu" not in calls[-1]["arguments"]
    assert len(done.stderr.splitlines()) == 1
    assert "GB" in done.stderr


def test_a_cpu_build_at_hand_is_taken(machine: Machine) -> None:
    """Where pip's own settings lead to a build without CUDA, PyTorch's index is not asked."""
    done, calls = machine.install("torch", stub="cpu")

    assert done.returncode == 0
    assert not any("--torch-backend=cpu" in call["arguments"] for call in calls)


def test_torch_with_a_driver_is_the_default_build(machine: Machine) -> None:
    """With nvidia-smi on PATH torch is installed as the index has it."""
    driver = machine.folder / "nvidia-smi"
    driver.write_text("#!/bin/sh\n")
    driver.chmod(0o755)
    _, calls = machine.install("torch")

    assert len(calls) == 1
    assert "--torch-backend=cpu" not in calls[0]["arguments"]


@pytest.mark.wheel
@pytest.mark.parametrize(
    ("stub", "variables"), [("fails", {}), ("works", {"KODOLLY_INSTALLER": "pip"})]
)
def test_pip_installs_where_uv_does_not(
    machine: Machine, stub: str, variables: dict[str, str]
) -> None:
    """Where uv fails, or the user wants none of it, pip does the work: here nothing, since pip is installed."""
    done, calls = machine.install("--no-index", "pip", stub=stub, **variables)

    assert done.returncode == 0, done.stderr
    assert len(calls) == (stub == "fails")
