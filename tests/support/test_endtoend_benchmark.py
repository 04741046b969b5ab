"""The vLLM benchmark's own judgement: fair turns, ratios with intervals, answers of the right length."""

import importlib
import itertools
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.scripted_engine import Script, ScriptedEngine

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def endtoend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loader of the benchmark's modules: benchmarks/ is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"benchmarks.endtoend.{name}")

    return load


def block(endtoend: Any, engine: tuple[float, float], kodolly: tuple[float, float]) -> list[Any]:
    """Four slices of 100 tokens in the order A B B A, which took these seconds."""
    made = endtoend("clients").Slice
    return [
        made("engine", engine[0], 100),
        made("kodolly", kodolly[0], 100),
        made("kodolly", kodolly[1], 100),
        made("engine", engine[1], 100),
    ]


def test_neither_way_is_favoured_by_its_place(endtoend: Any) -> None:
    """In a block each way has two slices with the same mean place, and blocks begin by turns."""
    plan = endtoend("plan")
    for number in range(4):
        order = plan.order(number)
        places = {way: [at for at, each in enumerate(order) if each == way] for way in plan.WAYS}
        assert {way: sum(at) for way, at in places.items()} == {"engine": 3, "kodolly": 3}
    assert Counter(plan.order(number)[0] for number in range(4)) == {"engine": 2, "kodolly": 2}


def test_no_two_requests_share_a_prompt(endtoend: Any) -> None:
    """The number that tells prompts apart comes first, so no cache helps beyond the template."""
    bodies = [endtoend("plan").body(number, 8) for number in range(200)]
    beginnings = {each["messages"][0]["content"][:6] for each in bodies}
    assert len(beginnings) == 200


def test_a_machine_that_slows_down_evenly_does_not_move_the_ratio(endtoend: Any) -> None:
    """Within a block A B B A a straight drift hits both ways alike, between blocks any change does."""
    judge = endtoend("judge")
    blocks = [
        block(endtoend, (scale * 1.0, scale * 4.0), (scale * 2.0, scale * 3.0)) for scale in (1, 7)
    ]
    found = judge.ratio(blocks)
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))


def test_the_interval_is_student_s_around_the_geometric_mean(endtoend: Any) -> None:
    """Two blocks of 0.5 and 2 have the mean 1, and an interval as wide as one degree of freedom makes it."""
    judge = endtoend("judge")
    found = judge.ratio(
        [
            block(endtoend, (1.0, 1.0), (2.0, 2.0)),
            block(endtoend, (2.0, 2.0), (1.0, 1.0)),
        ]
    )
    assert found.mean == pytest.approx(1.0)
    assert found.low == pytest.approx(2.0**-12.706, rel=1e-6)
    assert found.high == pytest.approx(2.0**12.706, rel=1e-6)


@pytest.mark.parametrize(
    ("degrees", "wanted"), [(1, 12.706), (4, 2.776), (5, 2.571), (11, 2.201), (30, 2.042)]
)
def test_student_s_quantiles_are_those_of_the_tables(
    endtoend: Any, degrees: int, wanted: float
) -> None:
    """Within a hundredth of the printed value."""
    assert endtoend("judge").student(degrees) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize(
    ("low", "high", "missed", "verdict"),
    [
        (0.95, 0.97, True, "below 0.98"),
        (0.95, 0.99, False, "0.98 is within the interval"),
        (0.985, 1.01, False, "at least 0.98"),
    ],
)
def test_the_target_is_missed_only_beyond_doubt(
    endtoend: Any, low: float, high: float, missed: bool, verdict: str
) -> None:
    """An interval that reaches the target does not fail the run, and says that it is wide."""
    found = endtoend("judge").Ratio((low + high) / 2, low, high, 1.0, 8)
    assert (found.missed, found.verdict) == (missed, verdict)


def test_an_error_fails_the_run_whatever_the_ratio(endtoend: Any) -> None:
    """A slice with a failed answer is told in the report."""
    report = endtoend("report")
    blocks = [block(endtoend, (1.0, 1.0), (1.0, 1.0)) for _ in range(2)]
    run = report.Run("head", {4: blocks})
    assert not run.failed
    assert "| 4 | 2 | 100.0 | 100.0 | **1.0000** |" in report.text(run)
    blocks[0][1].errors.append("no [DONE]")
    assert run.failed
    assert "- kodolly: no [DONE]" in report.text(run)


async def test_a_slice_counts_the_tokens_of_whole_answers(endtoend: Any) -> None:
    """All streams of a slice are asked at once, read to their end, and counted by their usage."""
    clients, plan = endtoend("clients"), endtoend("plan")
    async with ScriptedEngine(Script(model=plan.MODEL)) as engine, clients.session() as session:
        door = clients.Door("engine", engine.url, "key")
        made = await clients.measure(session, door, range(4), 20)
        numbers = [seen.body["messages"][0]["content"][:6] for seen in engine.requests]
    assert (made.tokens, len(made.first), made.errors) == (80, 4, [])
    assert sorted(numbers) == ["000000", "000001", "000002", "000003"]
    assert made.prompt_tokens > 0


@pytest.mark.parametrize("fault", [{"error_after": 3}, {"die_after": 3}, {"fail_status": 500}])
async def test_a_broken_answer_is_an_error_of_its_slice(
    endtoend: Any, fault: dict[str, Any]
) -> None:
    """Whatever breaks an answer, it is told, and its tokens do not count."""
    clients, plan = endtoend("clients"), endtoend("plan")
    script = Script(model=plan.MODEL, **fault)
    async with ScriptedEngine(script) as engine, clients.session() as session:
        door = clients.Door("engine", engine.url, "key")
        made = await clients.measure(session, door, range(2), 20)
    assert (made.tokens, len(made.errors)) == (0, 2)


async def test_an_answer_that_ended_early_is_an_error(endtoend: Any) -> None:
    """A slice with fewer tokens than asked would be no fair pair."""
    clients, plan = endtoend("clients"), endtoend("plan")
    script = Script(model=plan.MODEL, length=5)
    async with ScriptedEngine(script) as engine, clients.session() as session:
        made = await clients.measure(session, clients.Door("engine", engine.url, ""), range(1), 20)
    assert made.errors == ["6 tokens for 20"]


def test_blocks_come_in_turns_of_concurrency(endtoend: Any) -> None:
    """A slow minute of the machine hits every concurrency, not all blocks of one."""
    run, plan = endtoend("run"), endtoend("plan")
    bench = run.Bench(plan.Plan(blocks=2), None, endtoend("report").Run("head"))
    assert list(itertools.islice(bench._order(), 4)) == [(0, 1), (0, 4), (0, 8), (1, 1)]
