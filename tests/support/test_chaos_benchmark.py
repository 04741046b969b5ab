"""The chaos benchmark's own judgement, against answers that are right and answers that are not."""

import importlib
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import aiohttp
import pytest
from support.processes import free_port
from support.scripted_engine import Script, ScriptedEngine

ROOT = Path(__file__).resolve().parents[2]
KINDS = 10  # requests after which the mixture of kinds begins again


@pytest.fixture
def chaos(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loader of the benchmark's modules: benchmarks/ is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(name: str) -> ModuleType:
        return importlib.import_module(f"benchmarks.chaos.{name}")

    return load


def script(chaos: Any, **changes: Any) -> Script:
    """The script of the quick run's engines, at once."""
    fields = chaos("plan").QUICK.script() | {"token_delay": 0.0, "first_delay": 0.0} | changes
    return Script(**fields)


def asks(chaos: Any, count: int = KINDS) -> list[Any]:
    return list(itertools.islice(chaos("asks").scripted(chaos("plan").QUICK), count))


async def outcomes(chaos: Any, doors: list[str], questions: list[Any]) -> list[Any]:
    """Each request asked once, one after the other."""
    crowd = chaos("clients").Crowd(doors, 5.0)
    async with aiohttp.ClientSession() as session:
        for number, ask in enumerate(questions):
            await crowd.one(f"chaos-0-{number}", ask, 0, session)
    for client in crowd.library.values():
        await client.close()
    return list(crowd.outcomes)


async def test_every_kind_of_request_is_answered_as_expected(chaos: Any) -> None:
    """What the clients expect is what an undisturbed engine says: text, ids, usage, reasons."""
    async with ScriptedEngine(script(chaos)) as engine:
        made = await outcomes(chaos, [engine.url], asks(chaos, 4 * KINDS))
    assert {o.ask.way for o in made} == {"raw", "openai", "whole"}
    assert [(o.ask.name, o.answer.error, o.verdict) for o in made if not o.verdict.clean] == []
    assert not any(o.failed for o in made)


async def test_another_answer_than_the_script_s_is_seen(chaos: Any) -> None:
    """An engine that says something else fails every check of text, whatever the kind."""
    async with ScriptedEngine(script(chaos, tokens=["다른", " 말", "\n"])) as engine:
        made = await outcomes(chaos, [engine.url], asks(chaos))
    assert [o.ask.name for o in made if o.verdict.clean] == []


@pytest.mark.parametrize(
    ("fault", "kind"),
    [({"die_after": 5}, "broken connection"), ({"error_after": 5}, "error event")],
)
async def test_a_broken_stream_is_a_failure_and_no_lost_text(
    chaos: Any, fault: dict[str, int], kind: str
) -> None:
    """What came before the break was right: the client knows that the rest is missing."""
    streams = [ask for ask in asks(chaos) if ask.way != "whole"]
    async with ScriptedEngine(script(chaos, **fault)) as engine:
        made = await outcomes(chaos, [engine.url], streams)
    assert {(o.answer.error or "").partition(":")[0] for o in made} == {kind}
    assert [o.verdict for o in made if o.verdict.lost or o.verdict.doubled or o.verdict.other] == []


async def test_a_refused_connection_is_tried_at_the_other_door(chaos: Any) -> None:
    """One API process that is away costs no answer."""
    async with ScriptedEngine(script(chaos)) as engine:
        away = f"http://127.0.0.1:{free_port()}"
        made = await outcomes(chaos, [away, engine.url], asks(chaos))
    assert not any(o.failed for o in made)


@pytest.mark.parametrize(
    ("got", "ended", "counts"),
    [
        ("가나다라마바사", True, (0, 0, 0)),
        ("가나라마바사", True, (1, 0, 0)),
        ("가나다다라마바사", True, (0, 1, 0)),
        ("가나다라마나다라마바사", True, (0, 4, 0)),
        ("가나다라x마바사", True, (0, 0, 1)),
        ("가나다라", True, (3, 0, 0)),
        ("가나다라", False, (0, 0, 0)),
        ("가다라", False, (1, 0, 0)),
    ],
)
def test_lost_and_doubled_characters_are_counted(
    chaos: Any, got: str, ended: bool, counts: tuple[int, int, int]
) -> None:
    """Exactly as many as were lost or said twice; an answer that broke off owes no end."""
    assert chaos("checks").differences("가나다라마바사", got, ended=ended) == counts


def test_a_stream_without_its_end_and_one_with_two_names_are_not_right(chaos: Any) -> None:
    """No [DONE] is a failure; a second id, role, reason or usage is a fault of its own."""
    checks = chaos("checks")
    asked = next(ask for ask in asks(chaos) if ask.name == "usage")
    (expected,) = asked.expected
    event = (
        '{"id":"%s","choices":[{"index":0,"delta":{"role":"assistant","content":"%s"},'
        '"finish_reason":"%s"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
    )
    text = expected.text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    half = f"data: {event % ('a', text, 'stop')}\n\n".encode()
    assert checks.read_stream(half).error == "cut off"
    twice = half + f"data: {event % ('b', '', 'stop')}\n\n".encode() + b"data: [DONE]\n\n"
    wrong = checks.judge(asked, checks.read_stream(twice)).wrong
    assert len(wrong) == 4
    assert {text.split()[0] for text in wrong} == {"finish", "2", "more", "usage"}


def test_the_watch_tells_when_a_worker_left_and_when_it_came_back(chaos: Any) -> None:
    """The first change after a moment counts; a state that holds already counts from the moment."""
    watch = chaos("watch").Watch("", "")
    watch.changes = [(1.0, "w", "ready"), (5.0, "w", "lost"), (9.0, "w", "ready")]
    assert watch.first("w", 2.0, ready=False) == 5.0
    assert watch.first("w", 5.0, ready=True) == 9.0
    assert watch.first("w", 6.0, ready=False) == 6.0
    assert watch.first("w", 10.0, ready=False) is None
    assert watch.first("other", 0.0, ready=True) is None


def test_a_request_that_waits_is_put_down_to_the_fault_it_waits_for(chaos: Any) -> None:
    """One asked a moment before a fault and silent since is that fault's, and not the one's before."""
    clients, faults, report = chaos("clients"), chaos("faults"), chaos("report")
    ask, checks = asks(chaos, 1)[0], chaos("checks")
    crowd = clients.Crowd([], 5.0)
    for start, first, error in [
        (109.9, 113.0, None),  # asked just before the second fault
        (101.0, 103.0, None),
        (110.5, 112.5, None),
        (103.0, 103.2, None),  # quick
        (104.0, None, "status 502"),
    ]:
        answer = checks.Answer(error=error)
        times = (start, first, first or start + 0.1, 0.0, start)
        crowd.outcomes.append(clients.Outcome("x", ask, 0, *times, answer, checks.Verdict()))
    done = [faults.Fault("controller killed", "controller", at) for at in (100.0, 110.0)]

    rows = report.rows(crowd, done, None, chaos("watch").Watch("", ""), 1.5)

    assert [(row.harmed, row.harmed_until) for row in rows] == [(2, 4.0), (2, 0.5)]


def test_stored_answers_are_judged_by_their_events_and_by_their_object(chaos: Any) -> None:
    """Lost and doubled text, an event that came twice, an object with another text, one that failed."""
    stored = chaos("stored")
    ask = stored.Ask("text", {}, "가나다라마", 3)

    def answer(text: str, own: str = "가나다라마", **fields: Any) -> Any:
        end = {"output": [{"type": "message", "content": [{"text": own}]}]}
        return stored.Answer(ask, text=text, end=end, **fields)

    assert stored.totals([answer("가나다라마", attachments=2)]).good
    call = stored.Answer(ask, text="가나다라마", end={"output": [{"arguments": "가나다라마"}]})
    assert stored.totals([call]).good
    made = stored.totals(
        [
            answer("가나라마"),
            answer("가나다다라마"),
            answer("가나다라마", own="가나"),
            answer("가나다라마", repeated=1),
            answer("가나", error="failed"),
        ]
    )
    assert (made.characters_lost, made.characters_doubled) == (1, 1)
    assert (made.objects_wrong, made.events_repeated) == (1, 1)
    assert made.failures == {"failed (text)": 1}
    assert not made.good
