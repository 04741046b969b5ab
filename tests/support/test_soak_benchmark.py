"""The soak benchmark's own judgement: lines through samples, verdicts, and clients that notice."""

import asyncio
import importlib
import itertools
import math
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.processes import eventually
from support.scripted_engine import Script, ScriptedEngine

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loader of the benchmark's modules: benchmarks/ is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"benchmarks.soak.{name}")

    return load


def script(soak: Any, **changes: Any) -> Script:
    """The script of the soak's engines, at once."""
    plan = soak("plan")
    at_once = {"model": plan.MODEL, "token_delay": 0.0, "first_delay": 0.0}
    return Script(**plan.ANSWERS.script() | at_once | changes)


def test_a_straight_line_is_found_exactly(soak: Any) -> None:
    """Slope and first value are the line's, the uncertainty is nothing, growth is of the first value."""
    fitted = soak("judge").line([(float(t), 100.0 + 0.5 * t) for t in range(10, 31, 5)])
    assert fitted.first == pytest.approx(105.0)
    assert fitted.slope == pytest.approx(0.5)
    assert fitted.either_side == pytest.approx(0.0, abs=1e-9)
    assert fitted.growth == pytest.approx(10 / 105)


def test_independent_noise_has_the_textbook_s_uncertainty(soak: Any) -> None:
    """Residuals that change sign from one to the next are not taken to be alike."""
    points = [(float(t), float((-1) ** t)) for t in range(100)]
    spread = sum((t - 49.5) ** 2 for t, _ in points)
    fitted = soak("judge").line(points)
    assert fitted.either_side == pytest.approx(1.96 * math.sqrt(100 / 98 / spread), rel=0.01)
    assert abs(fitted.slope) < fitted.either_side


def test_residuals_that_are_alike_make_the_slope_less_sure(soak: Any) -> None:
    """The same values in waves instead of by turns say less about where memory goes."""
    line = soak("judge").line
    by_turns = line([(float(t), float(t % 2)) for t in range(120)])
    in_waves = line([(float(t), float(t // 10 % 2)) for t in range(120)])
    assert in_waves.either_side > 2 * by_turns.either_side


def test_a_line_needs_three_points(soak: Any) -> None:
    """Two points have no uncertainty to tell."""
    with pytest.raises(ValueError, match="three points"):
        soak("judge").line([(0.0, 1.0), (1.0, 2.0)])


def test_the_second_half_is_that_of_the_time(soak: Any) -> None:
    """A sample that came late does not move the middle."""
    judge = soak("judge")
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (9.0, 4.0), (10.0, 5.0)]
    assert judge.second_half(points) == points[3:]
    assert [judge.at_share(points, share) for share in (0.0, 0.25, 1.0)] == [1.0, 3.0, 5.0]


def test_a_flat_soak_has_no_fault(soak: Any) -> None:
    """Growth within the bound and a few files more are none."""
    judge = soak("judge")
    lines = {"api": judge.Line(100.0, 0.02, 0.0, 100.0), "controller": judge.Line(9.0, -1, 0.0, 9)}
    assert judge.faults(0, lines, {"api": (10, 12)}, 0.03, 2) == []


def test_every_fault_of_a_soak_is_told(soak: Any) -> None:
    """Errors, growth beyond the bound and files that stay open, each by name."""
    judge = soak("judge")
    lines = {"api": judge.Line(100.0, 0.04, 0.0, 100.0)}
    assert judge.faults(3, lines, {"controller": (10, 13)}, 0.03, 2) == [
        "3 errors",
        "api grew by 4.0% over the second half (bound 3%)",
        "controller has 13 files open after everybody left, 10 before anybody came",
    ]


def test_memory_of_a_process_is_read_by_kind(soak: Any, tmp_path: Path) -> None:
    """What is its own is part of what it shares with nobody, and that of all it holds; files are counted."""
    held = soak("memory").held
    before = held(os.getpid())
    assert 0 < before.own <= before.rss
    assert before.uss <= before.pss <= before.rss
    with (tmp_path / "file").open("w"):
        assert held(os.getpid()).files == before.files + 1


def test_every_way_to_ask_comes_up(soak: Any) -> None:
    """Among the clients' calls are stop strings, n, whole answers, long prompts, chats, slow ones, leavers."""
    questions = soak("asks").Questions()
    visits = [
        visit for slot in range(20) for visit in itertools.islice(questions.of(slot), 30)
    ]  # fmt: skip
    names = {visit.ask.name for visit in visits}
    assert {"n", "stop", "whole", "long", "chat on", "slow", "logprobs", "completion"} <= names
    assert any(visit.leaves for visit in visits)
    assert {visit.ask.name for visit in visits if visit.slow} == {"slow"}


async def visits(soak: Any, engine: ScriptedEngine, slots: range) -> Any:
    """Some calls of some clients, straight to an engine."""
    clients = soak("clients")
    crowd = clients.Crowd(engine.url, ["key"])
    questions = soak("asks").Questions()
    async with clients._session() as session:
        for slot in slots:
            for visit in itertools.islice(questions.of(slot), 8):
                await crowd._visit(slot, visit, session)
    return crowd


async def test_right_answers_are_no_errors(soak: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the clients expect is what an undisturbed engine says, also to those who leave."""
    monkeypatch.setattr(soak("clients"), "PAUSE", 0.0)
    async with ScriptedEngine(script(soak)) as engine:
        crowd = await visits(soak, engine, range(20))
        await eventually(lambda: engine.running == 0)
    assert crowd.errors == {}
    assert crowd.open == 0
    assert crowd.ended["stream"] > crowd.ended["whole"] > 0
    assert crowd.ended["left"] > 0


@pytest.mark.parametrize("fault", [{"error_after": 3}, {"die_after": 3}, {"fail_status": 500}])
async def test_a_failed_answer_is_an_error(soak: Any, fault: dict[str, Any]) -> None:
    """An error event, a broken connection and a refusal count, whoever asked."""
    async with ScriptedEngine(script(soak, **fault)) as engine:
        crowd = await visits(soak, engine, range(3))
    left = sum(crowd.ended.values())
    assert crowd.errors.total() == 3 * 8 - left
    assert left < 8
    assert crowd.examples


def test_a_stream_without_an_answer_is_an_error(soak: Any) -> None:
    """An end is not enough, but for a client that left before anything came."""
    clients = soak("clients")
    ask = next(soak("asks").Questions().of(1)).ask
    nothing = b"data: [DONE]\n\n"
    assert clients._wrong(ask, clients.read_stream(nothing), False) == ["no answer"]
    assert clients._wrong(ask, clients.read_stream(b""), False) == ["cut off"]
    assert clients._wrong(ask, clients.read_stream(b""), True) == []


async def test_another_text_is_an_error(soak: Any) -> None:
    """An engine that says something else than the script is noticed."""
    async with ScriptedEngine(script(soak, numbered=False)) as engine:
        crowd = await visits(soak, engine, range(1))
    assert crowd.errors.total() == 8


async def test_the_caches_are_filled_by_calls_of_all_kinds(soak: Any) -> None:
    """The filling is of the soak's kinds, quicker, each with a prompt of its own, and leaves no trace in the figures."""
    plan, questions = soak("plan"), soak("asks").Questions
    async with ScriptedEngine(Script(model=plan.MODEL)) as engine:
        stack = soak("stack").Stack(None, None, [engine], [])
        await asyncio.to_thread(stack.answer_by, plan.FILLING)
        crowd = soak("clients").Crowd(engine.url, ["a", "b"])
        async with asyncio.timeout(60):
            await crowd.fill(60, 5, questions(plan.FILLING))
        await asyncio.to_thread(stack.answer_by, plan.ANSWERS)
        asked = [
            str(seen.body.get("messages", seen.body.get("prompt"))) for seen in engine.requests
        ]
    assert crowd.errors == {}
    assert (crowd.open, crowd.stopping, crowd.events, crowd.ended.total()) == (0, False, 0, 0)
    assert len(set(asked)) == len(asked) >= 60
    assert max(seen.body["max_tokens"] for seen in engine.requests) <= 40
    assert engine.script.token_delay == plan.ANSWERS.token_delay


def test_a_second_run_asks_nothing_twice(soak: Any) -> None:
    """Questions numbered from elsewhere share no prompt with the first ones."""

    def prompts(first: int) -> set[str]:
        questions = soak("asks").Questions(first=first)
        asks = [v.ask.body for c in (0, 1, 7) for v in itertools.islice(questions.of(c), 60)]
        return {str(body.get("messages", body.get("prompt"))) for body in asks}

    assert not prompts(0) & prompts(soak("run").AGAIN)
