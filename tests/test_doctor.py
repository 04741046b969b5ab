"""What `kodolly doctor` says of containers, limits, Docker, tokens and GPUs."""

import stat
from pathlib import Path

import pytest

from kodolly import doctor, surroundings
from kodolly.settings import UpSettings


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the whole PATH: a test writes the programs that the machine has."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def test_limits_of_both_kinds_of_cgroup_are_read(tmp_path: Path) -> None:
    """cgroup v1 and v2; "max", a huge number and no file at all mean no limit."""
    assert surroundings.memory_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "pids.max").write_text("max\n")
    assert surroundings.memory_limit(tmp_path) is None
    assert surroundings.cpu_limit(tmp_path) is None
    assert surroundings.pids_limit(tmp_path) is None
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "pids.max").write_text("512\n")
    assert surroundings.memory_limit(tmp_path) == 2**30
    assert surroundings.cpu_limit(tmp_path) == 1.5
    assert surroundings.pids_limit(tmp_path) == 512

    old = tmp_path / "v1"
    for name, text in {
        "memory/memory.limit_in_bytes": "9223372036854771712",
        "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
    }.items():
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text(text)
    assert surroundings.memory_limit(old) is None
    assert surroundings.cpu_limit(old) is None
    (old / "memory/memory.limit_in_bytes").write_text("2147483648")
    assert surroundings.memory_limit(old) == 2**31


def test_memory_is_what_the_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small limit on a large machine is what counts."""
    monkeypatch.setattr(surroundings, "memory_limit", lambda: 2**30)
    finding = doctor.memory(UpSettings())

    assert finding.mark == "note"
    assert finding.text.startswith("1.0 of ")


def test_inside_an_image_nothing_is_asked_of_it_that_its_process_does_not_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The core image has no torch, no room for models, and its port is taken by its own process."""
    monkeypatch.setenv("KODOLLY_CONFIG", surroundings.IMAGE_CONFIG)
    monkeypatch.setattr(
        doctor,
        "resolve",
        lambda *_, **__: type("R", (), {"settings": UpSettings(model=str(tmp_path / "none"))}),
    )
    monkeypatch.setattr(doctor, "missing_modules", lambda _: ["web"])

    monkeypatch.setattr(surroundings, "memory_limit", lambda: 2**29)
    monkeypatch.setattr("shutil.which", lambda _: None)

    checks = doctor.CHECKS
    assert {check(UpSettings()).mark for check in checks} == {"ok"}


@pytest.mark.parametrize(
    ("script", "mark", "text"),
    [
        (None, "note", "not installed"),
        ("echo cannot connect >&2; exit 1", "note", "no engine answers: cannot connect"),
        ('[ "$1" = compose ] && exit 1; echo 26.1.5', "note", "26.1.5 without Compose"),
        ('[ "$1" = compose ] && echo 2.18.0 && exit; echo 26.1.5', "note", "Compose 2.18.0"),
        ('case $1 in compose) echo v2.26.1;; info) echo "nvidia runc ";; *) echo 26.1.5;; esac', "ok", "engine 26.1.5, Compose v2.26.1, NVIDIA's runtime"),
        ('case $1 in compose) echo 2.26.1-4;; info) echo "runc ";; *) echo 26.1.5;; esac', "ok", "engine 26.1.5, Compose 2.26.1-4"),
    ],
)  # fmt: skip
def test_docker_is_asked_and_not_only_looked_for(
    script: str | None, mark: str, text: str, programs: Path
) -> None:
    """A client without an engine, or without Compose, is told; none of it is needed by `up`."""
    if script is not None:
        program(programs, "docker", script)
    finding = doctor.docker(UpSettings())

    assert (finding.mark, text in finding.text) == (mark, True), finding


def test_a_token_is_judged_by_what_a_process_would_do_with_it(tmp_path: Path) -> None:
    """None, set, in a private file, in a file for everybody, empty, missing."""
    private, public, empty = (tmp_path / name for name in ("private", "public", "empty"))
    for file, text in ((private, "s3cret"), (public, "s3cret"), (empty, "")):
        file.write_text(text)
        file.chmod(0o600)
    public.chmod(0o644)
    marks = {
        "none": doctor.token(UpSettings()),
        "set": doctor.token(UpSettings(token="s3cret")),
        "private": doctor.token(UpSettings(token_file=str(private))),
        "public": doctor.token(UpSettings(token_file=str(public))),
        "empty": doctor.token(UpSettings(token_file=str(empty))),
        "gone": doctor.token(UpSettings(token_file=str(tmp_path / "gone"))),
    }
    assert {name: finding.mark for name, finding in marks.items()} == {
        "none": "note",
        "set": "ok",
        "private": "ok",
        "public": "note",
        "empty": "missing",
        "gone": "missing",
    }
    assert not any("s3cret" in f"{finding}" for finding in marks.values())


def test_a_gpu_counts_when_it_can_be_used(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None, hidden, without a torch for it, and usable are four different lines."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(doctor, "_torch_is_for_cpu", lambda: False)
    assert doctor.gpu(UpSettings()).text == "none found"
    program(programs, "nvidia-smi", "echo 'NVIDIA X, 24576 MiB'")
    assert doctor.gpu(UpSettings()) == doctor.Finding("ok", "gpu", "NVIDIA X, 24576 MiB")
    monkeypatch.setattr(doctor, "_torch_is_for_cpu", lambda: True)
    assert "build for CPUs" in doctor.gpu(UpSettings()).text
    assert doctor.gpu(UpSettings(engine="vllm")).mark == "ok"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hidden" in doctor.gpu(UpSettings()).text


def test_a_broken_model_is_missing_and_not_there(tmp_path: Path) -> None:
    """A folder with a config.json is no model yet."""
    (tmp_path / "config.json").write_text("[]")
    finding = doctor.model(UpSettings(model=str(tmp_path)))

    assert (finding.mark, "config.json: a JSON object is expected" in finding.text) == (
        "missing",
        True,
    )
