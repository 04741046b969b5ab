"""The gateway benchmark's own arithmetic and its load generator, against the scripted engine."""

import contextlib
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.processes import eventually, wait_until
from support.scripted_engine import Script, ScriptedEngine

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loader of the benchmark's modules: benchmarks/ is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"benchmarks.gateway.{name}")

    return load


def test_percentiles_are_values_that_were_measured(gateway: Any) -> None:
    """Nearest rank: p50 of 1..100 is 50, p99 is 99, of few values p99 is the largest."""
    percentile = gateway("report").percentile
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 50), percentile(values, 99)) == (50.0, 99.0)
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0
    assert percentile([], 50) is None


def test_added_time_is_the_median_of_the_rounds_differences(gateway: Any) -> None:
    """A slow minute that hits both targets of a round does not count against the gateway."""
    added = gateway("report").added
    direct = [[1.0], [5.0], [1.0]]
    ours = [[1.5], [5.5], [1.5]]
    assert added(ours, direct, 50) == 0.5
    assert added([], direct, 50) is None


def test_the_table_sets_the_figures_side_by_side(gateway: Any) -> None:
    """One line a figure: direct, theirs, ours and how many times better ours is."""
    plan, report = gateway("plan"), gateway("report")
    cell = plan.Cell("whole", 16, 1, 32, 0.0, 0.0)
    results = [
        report.Result("direct", cell, [[0.100]]),
        report.Result("FastChat", cell, [[0.300]], errors=1),
        report.Result("KoDolly", cell, [[0.105]]),
    ]
    names = ["direct", "FastChat", "KoDolly"]
    lines = report.table(report.rows(results, names), names, "KoDolly", "FastChat").splitlines()
    assert lines[2] == "| added latency, p50 | 16 | 100.0 ms | 200.0 ms | 5.00 ms | 40.0x |"
    assert lines[-1] == "| errors, whole 32 | 16 | 0 | 1 | 0 |  |"
    assert len(lines) == 5


def test_our_figures_stand_beside_the_best_of_the_others(gateway: Any) -> None:
    """With several rivals a last column names the best of them and how we compare with it."""
    plan, report = gateway("plan"), gateway("report")
    cell = plan.Cell("stream", 16, 1, 100, 0.0, 0.0)
    names = ["direct", "FastChat", "KoDolly", "SMG", "slow"]
    cpu = {"direct": 0.0, "FastChat": 0.1, "KoDolly": 0.01, "SMG": 0.02}
    results = [
        report.Result(name, cell, [[0.1]], answers=1, gateway_cpu=used)
        for name, used in cpu.items()
    ]
    lines = report.table(report.rows(results, names), names, "KoDolly", "FastChat").splitlines()
    figures = "| 1,000 | 10,000 | 5,000 |  | 10.0x | 2.0x (SMG) |"
    assert lines[2] == f"| streamed tokens a CPU second, 100 tokens | 16 |  {figures}"
    assert report.chart(report.rows(results, names), names).count("<rect") > len(names)


async def test_idle_streams_are_held_open_and_let_go(gateway: Any) -> None:
    """Streams that say one token and no more are all open at the measuring, and none afterwards."""
    load, plan = gateway("load"), gateway("plan")
    cell = plan.Cell("idle", 4, 4, 2, 0.0, plan.IDLE, once=True)
    async with ScriptedEngine(Script(model=plan.MODEL, token_delay=plan.IDLE)) as engine:
        seen: list[int] = []

        def measure() -> float:
            seen.append(engine.running)
            return float(engine.running)

        assert await load.hold(engine.port, cell, measure) == (0.0, 4.0, 4)
        await eventually(lambda: engine.running == 0)
    assert seen == [0, 4]


def test_a_rival_that_no_registry_has_is_named_with_its_reason(gateway: Any) -> None:
    """Without a checkout the production-stack router is left out, and the text says what to do."""
    rivals, environments = gateway("rivals"), gateway("environments")
    rival = rivals.rivals(None)["production-stack"]
    with pytest.raises(environments.Unavailable, match="--production-stack DIR"):
        rival.command(1, "http://127.0.0.1:2", Path())


@pytest.mark.parametrize("kind", ["whole", "first"])
async def test_the_load_generator_reads_whole_and_streamed_answers(gateway: Any, kind: str) -> None:
    """Every answer is read to its end over kept connections and says what the engine says."""
    load, plan = gateway("load"), gateway("plan")
    cell = plan.Cell(kind, 4, 12, 30, 0.0, 0.0)
    async with ScriptedEngine(Script(model=plan.MODEL)) as engine:
        samples = await load.run(engine.port, cell)
        assert len(engine.requests) == 12
    said = {load.text_of(sample.raw, cell.streamed) for sample in samples}
    assert said == {Script().answer(30).text}
    assert all((sample.first is not None) == cell.streamed for sample in samples)


async def test_the_load_generator_counts_a_broken_answer_as_an_error(gateway: Any) -> None:
    """A connection that dies in the middle is an error of that answer and not of the run."""
    load, plan = gateway("load"), gateway("plan")
    cell = plan.Cell("first", 2, 4, 30, 0.0, 0.0)
    async with ScriptedEngine(Script(model=plan.MODEL, die_after=3)) as engine:
        samples = await load.run(engine.port, cell)
    assert [sample.error for sample in samples] == ["ConnectionResetError: connection lost"] * 4


def test_a_refused_answer_is_no_answer(gateway: Any) -> None:
    """A status other than 200 and a stream without [DONE] are errors."""
    load = gateway("load")
    with pytest.raises(ValueError, match="503"):
        load.text_of(b"HTTP/1.1 503 Service Unavailable\r\n\r\n{}", False)
    with pytest.raises(ValueError, match="DONE"):
        load.text_of(b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices":[]}\n\n', True)


def test_a_started_process_ends_with_its_children(
    gateway: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving `running` kills the whole process group, also one that ignores SIGTERM."""
    script = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "open('pid', 'w').write(str(child.pid))\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)\n"
    )
    processes = gateway("processes")
    monkeypatch.setattr(processes, "GRACE", 0.2)
    with processes.running("x", [sys.executable, "-c", script], tmp_path, {}) as leader:
        while not (tmp_path / "ready").exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                leader.wait(0.02)
        assert processes.cpu_seconds([leader.pid]) > 0
    grandchild = int((tmp_path / "pid").read_text())
    assert leader.poll() is not None
    stat = Path(f"/proc/{grandchild}/stat")
    # The kernel has sent the signal; a busy machine may take a moment to carry it out.
    wait_until(lambda: not stat.exists() or ") Z" in stat.read_text(), what="the end of a child")


def _rounds(comparison: Any, old: list[float], again: list[float], new: list[float]) -> list[Any]:
    """Measurements of CPU a token, 16 at once, one a round for each version."""
    return [
        comparison.Measurement(version, number, "token", 16, cpu, None, None)
        for version, values in (("old", old), ("old again", again), ("new", new))
        for number, cpu in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("new", "noise", "is_worse"),
    [
        (1.02, 0.0, False),  # 0.98 of the speed: above the floor
        (1.10, 0.0, True),  # 0.91 on a quiet machine
        (1.10, 0.3, False),  # the earlier code differs more than that from itself
        (0.80, 0.0, False),  # faster
    ],
)
def test_a_version_is_worse_below_the_floor_and_the_noise(
    gateway: Any, new: float, noise: float, is_worse: bool
) -> None:
    """Worse is what is slower than 0.97 of the earlier code, and than that code is beside itself."""
    comparison = gateway("comparison")
    again = [1 + noise, 1 - noise] * 4
    measurements = _rounds(comparison, [1.0] * 8, again, [new] * 8)

    [verdict] = comparison.verdicts(measurements)

    assert verdict.is_worse == is_worse
    assert ("WORSE" in str(verdict)) == is_worse
    assert "CPU a token" in comparison.table(measurements)


def test_an_unknown_commit_is_one_line(gateway: Any) -> None:
    """`--against` of something that git does not have ends with one line that names it."""
    command = [sys.executable, "-m", "benchmarks.gateway.run", "--against", "no-such-commit"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr == "error: --against no-such-commit: git has no such commit here\n"
