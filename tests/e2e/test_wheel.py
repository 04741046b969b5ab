"""The wheel in empty environments outside the repository: what `pip install kodolly` gives somebody.

Run by `make test-wheel`. The packages come from where pip's settings say, pinned by constraints.txt.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from support.processes import free_port, start, wait_http

pytestmark = pytest.mark.wheel

ROOT = Path(__file__).resolve().parents[2]
INSTALL = ROOT / "deploy" / "setup" / "install_packages.py"
BUILD = "import sys, hatchling.build as b; b.build_wheel(sys.argv[1])"
START = 180.0  # seconds until the first answer: nothing is compiled to bytecode yet
HANGUL = re.compile("[가-힣]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the repository with nothing but the wheel in it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, check=True, timeout=120)
    return folder


def environment(place: Path, name: str, *requirements: str) -> Path:
    """A new environment with `requirements` in it; returns its `kodolly`."""
    home = place / name
    subprocess.run([sys.executable, "-m", "venv", home], check=True, timeout=120)
    for requirement in requirements:
        command: list[str | Path] = [sys.executable, INSTALL, home / "bin" / "python"]
        pins = ["-c", str(ROOT / "constraints.txt")]
        subprocess.run([*command, *pins, requirement], cwd=place, check=True, timeout=900)
    return home / "bin" / "kodolly"


@pytest.fixture(scope="module")
def bare(place: Path) -> Path:
    """`kodolly` without any extra."""
    [wheel] = place.glob("*.whl")
    return environment(place, "bare", str(wheel))


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """`kodolly` with the extra `all`."""
    [wheel] = place.glob("*.whl")
    return environment(place, "whole", "torch", f"{wheel}[all]")


def run(kodolly: Path, arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [kodolly, *arguments.split()]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_chat_is_served(whole: Path, tmp_path: Path) -> None:
    """`kodolly up` in an empty folder: the page, and an answer in Korean; SIGTERM ends it."""
    ports = {name: free_port() for name in ("controller", "worker", "api", "web")}
    flags = [f"--{name}-port={port}" for name, port in ports.items()]
    with start([str(whole), "up", *flags], cwd=tmp_path) as up:
        wait_http(f"http://127.0.0.1:{ports['web']}/", process=up, timeout=START)
        wait_http(f"http://127.0.0.1:{ports['api']}/ready", process=up, timeout=START)
        url = f"http://127.0.0.1:{ports['api']}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(
                model=client.models.list().data[0].id,
                messages=[{"role": "user", "content": "안녕하세요?"}],
                temperature=0,
            )
        assert HANGUL.search(answer.choices[0].message.content or "")
        up.popen.terminate()
        assert up.popen.wait(60) == 0


@pytest.mark.parametrize(
    "arguments",
    ["--version", "config", "plan polyglot-ko-5.8b-lora", "convert --list-rules", "train --list"],
)
def test_commands_find_their_data(whole: Path, arguments: str, tmp_path: Path) -> None:
    """Commands that read data files of the package find them."""
    done = run(whole, arguments, tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_rows_are_converted(whole: Path, tmp_path: Path) -> None:
    """`kodolly convert` makes rows and a data card, whose pictures and texts are data files too."""
    rows = ROOT / "examples" / "kodolly-ko-8m" / "data" / "rows.jsonl"
    shutil.copy(rows, tmp_path)
    done = run(whole, "convert rows.jsonl --out rows --source dolly", tmp_path)

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rows" / "train.jsonl").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        ("up", "transformers,web"),
        ("up --no-web", "transformers"),
        ("worker --model some/model", "transformers"),
        ("web", "web"),
        ("convert rows.jsonl --out rows", "data"),
        ("fetch --model smollm2", "transformers"),
        ("train tiny-neox-lora --dry-run", "train"),
        ("merge base adapter --out merged", "train"),
    ],
)
def test_the_bare_package_names_the_extra(
    bare: Path, arguments: str, extra: str, tmp_path: Path
) -> None:
    """A command whose extra is missing exits 1 with one line that says what to install."""
    done = run(bare, arguments, tmp_path)

    assert done.returncode == 1
    assert f"pip install 'kodolly[{extra}]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["controller", "api", "worker", "up", "plan", "fetch", "web"])
def test_the_bare_package_shows_help(bare: Path, command: str, tmp_path: Path) -> None:
    """`--help` of every command whose options need no extra works without one."""
    done = run(bare, f"{command} --help", tmp_path)

    assert done.returncode == 0
    assert "usage:" in done.stdout
