"""Processes, Ray and a kill in the middle change nothing about what is written."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support.convert_files import alpaca, korquad2, kovicuna, write_json

from kodolly import cli
from kodolly_adapters.convert.run import convert
from kodolly_adapters.convert.schema import SUMMARY_FILE
from kodolly_adapters.errors import InputError

SLOW = 120.0  # seconds
KODOLLY = str(Path(sys.executable).with_name("kodolly"))


def files(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several pieces each."""
    folder = tmp_path_factory.mktemp("raw")
    write_json(folder / "ko_alpaca_data.json", alpaca(30_000))
    write_json(folder / "ko_dataset.json", kovicuna(4_000, pairs=4), indent=2)
    write_json(folder / "korquad2.1_train_00.json", korquad2(1_000))
    return folder


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of them."""
    out = tmp_path_factory.mktemp("one") / "out"
    convert([str(raw)], out, jobs=1)
    return files(out)


def test_two_processes_give_the_bytes_of_one(
    raw: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """The number of processes shows nowhere in the output."""
    convert([str(raw)], tmp_path / "out", jobs=2)
    assert files(tmp_path / "out") == expected


def test_a_fault_in_a_process_is_the_same_error(raw: Path, tmp_path: Path) -> None:
    """A broken file names itself and its byte from another process too."""
    file = tmp_path / "ko_alpaca_data.json"
    file.write_bytes((raw / "ko_alpaca_data.json").read_bytes()[:-50])
    with pytest.raises(InputError, match=r"ko_alpaca_data\.json: byte \d+: ends in the middle"):
        convert([str(file)], tmp_path / "out", jobs=2)


@pytest.mark.ray
def test_ray_gives_the_bytes_of_one_process(
    raw: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """--engine ray drives the same functions on a local Ray, to the same bytes; its faults are ours."""
    pytest.importorskip("ray")
    command = [KODOLLY, "convert", "--engine", "ray", "--jobs", "2"]
    process = subprocess.run(
        [*command, str(raw), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=SLOW,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert files(tmp_path / "out") == expected


@pytest.mark.stack
def test_a_killed_run_goes_on_where_it_was(
    raw: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    """kill -9 in the middle, the same command again: finished parts are kept, and the bytes are the same."""
    for attempt in range(8):  # a busy machine may show us the middle too late
        out = tmp_path / str(attempt)
        before = parts_seen(start(raw, out), out, 2, kill=True)
        if (out / SUMMARY_FILE).exists():
            continue
        assert not list(out.glob("*.jsonl"))

        again = start(raw, out)
        after = parts_seen(again, out, len(before) + 1)
        assert again.wait(SLOW) == 0
        assert files(out) == expected
        if len(after) > len(before) >= 2 and before.keys() <= after.keys():
            assert {name: after[name] for name in before} == before
            return
    raise AssertionError("eight runs ended before they could be killed in the middle")


def test_two_runs_into_one_folder_are_refused(raw: Path, tmp_path: Path) -> None:
    """While one run writes, a second into the same folder ends with a sentence that says so."""
    out = tmp_path / "out"
    first = start(raw, out)
    wait_for(lambda: (out / ".work" / "parts").exists(), first)
    second = start(raw, out, stderr=subprocess.PIPE)
    assert second.wait(SLOW) == 1
    assert second.stderr is not None
    with second.stderr as stream:
        assert b"another conversion is writing there" in stream.read()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()


@pytest.mark.stack
@pytest.mark.parametrize("sign", ["parts/*.part", "out/*"], ids=["converting", "writing"])
def test_ctrl_c_says_how_to_go_on(raw: Path, tmp_path: Path, sign: str) -> None:
    """Ctrl-C ends with 130, one line and no traceback of any process, and leaves the finished parts."""
    for attempt in range(8):  # a busy machine may show us the sign when all is done
        out = tmp_path / str(attempt)
        process = start(raw, out, stderr=subprocess.PIPE)
        until(partial(there, out / ".work", sign), process)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        with process.stderr as stream:
            text = stream.read().decode()
        if process.wait(SLOW) == 0:
            continue
        assert process.returncode == 130
        assert "The same command goes on from here" in text
        assert "Traceback" not in text
        return
    raise AssertionError("eight runs ended before they could be interrupted")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rule", "empty=keep"], "--rule: rule empty has no mode 'keep'"),
        (["--rule", "nonsense"], "--rule nonsense: write NAME=MODE"),
        (["--validation", "2"], "--validation 2.0"),
        (["--source", "x"], "--source x: there is no such source"),
        (["--jobs", "0"], "--jobs"),
        (["--tokenizer", "./none"], "--tokenizer"),
    ],
)
def test_a_wrong_flag_is_named(
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its exit status is 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "ko_alpaca_data.json", alpaca(3))
    assert exit_status("ko_alpaca_data.json", "--out", "wrong", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "wrong" / SUMMARY_FILE).exists()


def test_convert_asks_for_a_folder_and_lists_its_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --out the exit status is 2; --list-rules needs none."""
    write_json(tmp_path / "ko_alpaca_data.json", alpaca(3))
    assert exit_status(str(tmp_path / "ko_alpaca_data.json")) == 2
    assert "--out" in capsys.readouterr().err
    assert exit_status(str(tmp_path / "ko_alpaca_data.json"), "--list-rules") == 0
    assert "near-duplicate" in capsys.readouterr().out


def exit_status(*words: str) -> int:
    """That of `kodolly convert WORDS`, run in this process."""
    try:
        return cli.main(["convert", *words])
    except SystemExit as end:  # argparse's own way to refuse
        return int(end.code or 0)


@pytest.mark.stack
def test_the_command_line(tmp_path: Path) -> None:
    """The folder is all that standard output says, also where the rows come from standard input."""
    write_json(tmp_path / "ko_alpaca_data.json", alpaca(3))
    command = [KODOLLY, "convert", str(tmp_path / "ko_alpaca_data.json")]

    def run(*more: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*command, *more], capture_output=True, input=stdin, timeout=SLOW, check=False
        )

    process = run("--out", str(tmp_path / "out"), "--jobs", "1")
    assert (process.returncode, process.stdout.decode().strip()) == (0, str(tmp_path / "out"))
    wrong = run("--out", str(tmp_path / "wrong"), "--jobs", "0")
    assert (wrong.returncode, wrong.stdout) == (2, b"")
    assert b"--jobs" in wrong.stderr

    command[-1] = "-"
    result = run("--out", str(tmp_path / "piped"), stdin=json.dumps(alpaca(3)).encode())
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "piped" / "train.jsonl").read_bytes() == (
        tmp_path / "out" / "train.jsonl"
    ).read_bytes()


# A shell's background jobs ignore Ctrl-C, and so would everything these tests start there.
WITH_SIGINT = """\
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def start(raw: Path, out: Path, stderr: int | None = None) -> subprocess.Popen[bytes]:
    command = [KODOLLY, "convert", str(raw), "--out", str(out), "--jobs", "2"]
    return subprocess.Popen(
        [sys.executable, "-c", WITH_SIGINT, *command],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )


def parts_seen(
    process: subprocess.Popen[bytes], out: Path, count: int, *, kill: bool = False
) -> dict[str, int]:
    """Name and time of the finished parts, once there are `count` or the run has ended.

    With `kill` it is killed then, and the result is what it left.
    """
    folder = out / ".work" / "parts"
    parts: dict[str, int] = {}

    def enough() -> bool:
        parts.update(finished(folder))
        return len(parts) >= count

    until(enough, process)
    if kill:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return finished(folder)
    return parts


def finished(folder: Path) -> dict[str, int]:
    times = {}
    for path in folder.glob("*.part"):
        with contextlib.suppress(FileNotFoundError):  # a part is removed once it is written
            times[path.name] = path.stat().st_mtime_ns
    return times


def there(folder: Path, pattern: str) -> bool:
    return any(folder.glob(pattern))


def until(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Waits until the condition holds or the run has ended."""
    deadline = time.monotonic() + SLOW
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    until(condition, process)
    assert condition(), "the run ended before it could be disturbed"
