"""The `kodolly` command as a person meets it."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from kodolly import cli, doctor
from kodolly.settings import UpSettings

HEAVY = (
    "torch",
    "transformers",
    "gradio",
    "fastchat",
    "aiohttp",
    "fastapi",
    "httpx",
    "starlette",
    "pydantic",
)


def kodolly(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kodolly", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=cwd, check=False)


def test_help_names_every_command() -> None:
    """`kodolly --help` lists what there is and exits 0."""
    done = kodolly("--help")

    assert done.returncode == 0
    assert all(f"  {name}" in done.stdout for name in (*cli.COMMANDS, "fetch"))


def test_help_imports_nothing_heavy() -> None:
    """--help stays fast because only the chosen command is imported."""
    code = f"import sys, kodolly.cli as c; c.main(['--help']); print(*({HEAVY!r} & sys.modules.keys()))"
    code = code.replace(repr(HEAVY), f"set({HEAVY!r})")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.splitlines()[-1] == ""


def test_an_unknown_command_is_bad_usage() -> None:
    """A misspelt command exits 2 and shows the list."""
    done = kodolly("sevre")

    assert done.returncode == 2
    assert "no command 'sevre'" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("worker",), "--model: name the model directory to serve"),
        (("worker", "--model", "./nowhere"), "--model: no directory ./nowhere"),
        (("worker", "--engine", "openai"), "--engine-url"),
        (("worker", "--engine", "cuda", "--model", "x"), "engine must be one of"),
        (("controller", "--host", "0.0.0.0"), "KODOLLY_TOKEN"),
        (("config", "nothing"), "no section 'nothing'"),
        (("up", "--worker-port", "65000"), "--worker-port: 65000 is too high"),
        (("up", "--web-port", "8000"), "--api-port and --web-port both take port 8000"),
    ],
)
def test_bad_input_is_one_clear_line(
    args: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A wrong option exits 1 with one line that names it, and no traceback."""
    monkeypatch.chdir(tmp_path)

    assert cli.main(args) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_a_process_ends_as_its_command_does(tmp_path: Path) -> None:
    """`python -m kodolly` exits with the command's code and writes nothing but its line."""
    done = kodolly("worker", "--model", "./nowhere", cwd=tmp_path)

    assert done.returncode == 1
    assert done.stderr == "kodolly worker: --model: no directory ./nowhere\n"


def test_config_shows_values_and_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`kodolly config` tells each option's value and where it came from."""
    (tmp_path / "kodolly.toml").write_text("[api]\nport = 8123\n")
    monkeypatch.chdir(tmp_path)

    assert cli.main(["config", "api"]) == 0

    line = next(row for row in capsys.readouterr().out.splitlines() if "--port" in row)
    assert "8123" in line
    assert "kodolly.toml:2" in line


@pytest.mark.parametrize(
    "args", [("--config", "k.toml"), ("api", "--config=k.toml"), ("--config", "k.toml", "api")]
)
def test_config_takes_a_file(
    args: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`kodolly config --config FILE` shows what that file sets, of all sections or a named one."""
    (tmp_path / "k.toml").write_text("[api]\nport = 8123\n")
    monkeypatch.chdir(tmp_path)

    assert cli.main(["config", *args]) == 0

    output = capsys.readouterr().out
    assert "k.toml:2" in output
    assert ("[web]" in output) == ("api" not in args)


def test_doctor_misses_the_engine_that_is_asked_for() -> None:
    """With --engine vllm an environment without vLLM is a fault and no note."""
    settings = UpSettings(engine_python=sys.executable)
    if find_spec("vllm"):
        pytest.skip("vLLM is installed here")

    assert doctor.vllm(settings).mark == "note"
    assert doctor.vllm(replace(settings, engine="vllm")).mark == "missing"


def test_doctor_takes_a_hub_id_for_no_missing_folder(tmp_path: Path) -> None:
    """A model by its name on the hub is noted: it need not be on this machine yet."""
    finding = doctor.model(UpSettings(model="some-organisation/some-model"))

    assert finding.mark == "note"
    assert doctor.model(UpSettings(model=str(tmp_path / "none"))).mark == "missing"


def test_doctor_outlasts_a_hanging_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that never ends is a line of the report."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor, "PROBE_TIMEOUT", 0.2)

    finding = doctor.gpu(UpSettings())

    assert (finding.mark, "timed out" in finding.text) == ("note", True)


def test_doctor_reports_and_advises(tmp_path: Path) -> None:
    """`kodolly doctor` prints a line a subject and exits 1 when something needed is missing."""
    done = kodolly("doctor", "--model", str(tmp_path / "none"), cwd=tmp_path)

    assert done.returncode == 1
    assert {"python", "disk", "ports", "model", "vllm"} <= {
        row.split()[1] for row in done.stdout.splitlines()
    }
    assert "check --model" in done.stdout


# `kodolly ARGS` in an environment that lacks some packages.
WITHOUT = """
import sys
class Installed:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {names} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Installed, sys.meta_path)
from kodolly.cli import main
sys.exit(main({args}))
"""


@pytest.mark.parametrize(
    ("args", "missing", "extra"),
    [
        (["up"], "gradio", "web"),
        (["up"], "torch", "transformers"),
        (["worker", "--model", "some/model"], "torch", "transformers"),
        (["web"], "gradio", "web"),
        (["convert", "x", "--out", "y"], "msgspec", "data"),
        (["fetch", "--model", "smollm2"], "torch", "transformers"),
        (["train", "tiny-neox-lora", "--dry-run"], "trl", "train"),
        (["merge", "x", "y", "--out", "z"], "msgspec", "train"),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(
    args: list[str], missing: str, extra: str, tmp_path: Path
) -> None:
    """Without its packages a command exits 1 with one line: the package, and what to install."""
    code = WITHOUT.format(names={missing}, args=args)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )

    assert done.returncode == 1
    assert missing in done.stderr
    assert f"pip install 'kodolly[{extra}]'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("model", [["--model", "some/model"], []], ids=["a model", "the embedded"])
def test_up_without_vllm_is_refused_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model: list[str],
) -> None:
    """`kodolly up --engine vllm` without a vLLM says so in one line; it starts no process and copies no model."""
    if find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    monkeypatch.chdir(tmp_path)

    assert cli.main(["up", "--no-web", "--engine", "vllm", *model]) == 1
    assert "there is no vLLM" in capsys.readouterr().err
    assert not (tmp_path / ".kodolly").exists()


def test_the_pages_api_is_checked_at_start(capsys: pytest.CaptureFixture[str]) -> None:
    """A URL without its scheme would fail at the first chat."""
    assert cli.main(["web", "--api", "localhost:8000"]) == 1
    assert "--api: 'localhost:8000' is not of the form http://host:port" in capsys.readouterr().err
