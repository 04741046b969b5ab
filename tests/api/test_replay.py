"""A worker fails in the middle of an answer that tokens alone do not carry: it is replayed elsewhere.

The engines here give different answers unless they are forced: what the client gets shows which did.
"""

from typing import Any

import orjson
import pytest
from support.script import KOREAN_TOKENS, Script
from support.scripted_engine import ScriptedEngine

from kodolly.api.client_output import EventSink
from kodolly.api.relay.client_stream import ClientStream
from kodolly.api.request import ApiRequest

from .conftest import Stack
from .test_resume import CHAT, USAGE, Events, choices, events, logprobs, one_identity, prefer, said

TOOLS: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
}
SCHEMA: dict[str, Any] = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}
}
REGEX: dict[str, Any] = {"structured_outputs": {"regex": ".*"}}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tools": ("tool", TOOLS),
    "schema": ("text", SCHEMA),
    "structured": ("text", REGEX),
    "thought": ("thought", {}),
    "thought and tools": ("thought", TOOLS),
}
CUTS = (1, 2, 13, 20, 23, len(KOREAN_TOKENS) - 1)  # 13 and 23: inside a character


async def two(
    stack: Stack, shape: str = "text", *, forced_ids: bool = True, other: int = 7, **faults: Any
) -> tuple[ScriptedEngine, ScriptedEngine]:
    """A worker that fails, and one that gives another answer unless it is forced."""
    well = await stack.add(Script(shape=shape, begins_at=other), forced_ids=forced_ids)
    bad = await stack.add(Script(shape=shape, **faults), forced_ids=forced_ids)
    prefer(stack, bad, well)
    return bad, well


def deltas(told: Events, index: int = 0) -> dict[str, str]:
    """The texts of one answer by the name of their field, the calls' arguments among them."""
    texts: dict[str, str] = {}
    for choice in choices(told, index):
        delta = choice["delta"]
        for call in delta.get("tool_calls") or ():
            assert call["index"] == 0
            texts["arguments"] = texts.get("arguments", "") + call["function"].get("arguments", "")
            for name in ("id", "type"):
                assert name not in texts or name not in call, "sent twice"
                texts |= {name: call[name]} if name in call else {}
            if "name" in call["function"]:
                assert "name" not in texts, "sent twice"
                texts["name"] = call["function"]["name"]
        for name in ("reasoning", "content"):
            texts[name] = texts.get(name, "") + (delta.get(name) or "")
    return {name: text for name, text in texts.items() if text}


def without_ids(texts: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if name != "id"}


@pytest.mark.parametrize("kind", KINDS)
async def test_no_cut_shows(stack: Stack, kind: str) -> None:
    """Cut after any token, a call, a constrained text or a thought comes out as one engine's own."""
    shape, fields = KINDS[kind]
    bad, well = await two(stack, shape)
    whole = await events(stack, **fields, **USAGE)
    assert "".join(without_ids(deltas(whole)).values()).startswith(("물론", "function"))
    for cut in CUTS:
        bad.script.die_after = cut
        prefer(stack, bad, well)
        told = await events(stack, **fields, **USAGE)
        assert without_ids(deltas(told)) == without_ids(deltas(whole)), cut
        assert one_identity(told)
        assert told[-1]["usage"] == whole[-1]["usage"]
        ends = [c["finish_reason"] for t in (whole, told) for c in choices(t) if c["finish_reason"]]
        assert len(ends) == 2
        assert ends[0] == ends[1]
        assert len([c for c in choices(told) if "role" in c["delta"]]) == 1
        assert not any(c.get("token_ids") for c in choices(told))
    assert all(seen.outcome == "finished" for seen in well.requests)
    assert len(well.requests) == len(CUTS)


async def test_each_of_several_answers_is_replayed_alone(stack: Stack) -> None:
    """With n = 3 and a seed, answer i is asked for by itself, with the seed that it had."""
    _bad, well = await two(stack, die_after=9)
    told = await events(stack, n=3, seed=40, **SCHEMA, **USAGE)
    assert [said(told, index) for index in range(3)] == [Script().text] * 3
    assert told[-1]["usage"]["completion_tokens"] == 3 * (Script().size + 1)
    again = [seen.body for seen in well.requests]
    assert sorted(body["seed"] for body in again) == [40, 41, 42]
    assert not any("n" in body for body in again)


async def test_a_completion_with_a_grammar_goes_on(stack: Stack) -> None:
    """So does a text completion, each of several prompts on its own."""
    _bad, well = await two(stack, die_after=7)
    told = await events(stack, "completion", prompt=["하나", "둘"], n=2, **REGEX, **USAGE)
    assert [said(told, index) for index in range(2)] == [Script().text] * 2
    # Of the other prompt nothing had come: any answer will do.
    assert [said(told, index) for index in (2, 3)] == [well.script.answer(99, start=7).text] * 2
    assert [seen.body["prompt"] for seen in well.requests] == ["하나"] * 2 + ["둘"] * 2


async def test_token_ids_and_log_probabilities_come_once(stack: Stack) -> None:
    """A client that asks for them gets those of every token, none of them twice."""
    wanted: dict[str, Any] = {"return_token_ids": True, "logprobs": True, "top_logprobs": 2}
    bad, well = await two(stack)
    whole = await events(stack, **SCHEMA, **wanted)
    for cut in CUTS:
        bad.script.die_after = cut
        prefer(stack, bad, well)
        told = await events(stack, **SCHEMA, **wanted)
        ids = [[i for c in choices(t) for i in c.get("token_ids") or ()] for t in (whole, told)]
        assert ids[0] == ids[1]
        assert logprobs(told) == logprobs(whole)


async def test_a_replay_that_fails_is_replayed(stack: Stack) -> None:
    """One worker after the other may fail, before or after the point that the client has."""
    deaths = {0: 20}  # by what an engine's own answer begins with
    well = await stack.add(Script(shape="tool", begins_at=7), forced_ids=True)
    for begin, death in deaths.items():
        await stack.add(Script(shape="tool", begins_at=begin, die_after=death), forced_ids=True)
    first = await stack.add(Script(shape="tool", die_after=8), forced_ids=True)
    for worker in stack.table.all():
        if worker.row.name != first.url:
            stack.table.suspect(worker)
    assert without_ids(deltas(await events(stack, **TOOLS)))["arguments"] == Script().text
    assert well.requests


async def test_engines_that_take_no_ids_are_passed_over(stack: Stack) -> None:
    """A sampled call goes to a worker that can be forced, whatever the other ones are."""
    bad, well = await two(stack, "tool", die_after=9)
    other = await stack.add(Script(shape="tool", begins_at=5))
    for number in range(6):
        for worker in stack.table.all():
            worker.foreign = 0 if worker.row.name == bad.url else 1000
            worker.suspect_until = 0.0
        question = [{"role": "user", "content": f"질문 {number}"}]
        told = await events(stack, messages=question, **TOOLS)
        assert deltas(told)["arguments"] == Script().text
    assert len(well.requests) == 6
    assert not other.requests


@pytest.mark.parametrize("fields", [{"temperature": 0}, {"seed": 3}])
async def test_the_same_request_again_may_give_the_same_answer(
    stack: Stack, fields: dict[str, Any]
) -> None:
    """Where no engine can be forced, a greedy or seeded request is repeated and compared."""
    bad, well = await two(stack, "tool", forced_ids=False, other=0, die_after=9)
    whole = await events(stack, **TOOLS, **fields)
    assert without_ids(deltas(whole))["arguments"] == Script().text
    assert "vllm_xargs" not in well.requests[-1].body

    well.script.begins_at = 4
    prefer(stack, bad, well)
    told = await events(stack, **TOOLS, **fields)
    assert told[-1]["error"]["code"] == "replay_diverged"
    sent = deltas(told[:-1])["arguments"]
    assert Script().text.startswith(sent), "something of the other answer was sent"


async def test_an_engine_that_forgets_to_force_is_noticed(stack: Stack) -> None:
    """A worker says that it can be forced, but gives another answer: none of it is sent."""
    _bad, well = await two(stack, die_after=9)
    well.script.forces_ids = False
    told = await events(stack, **SCHEMA)
    assert told[-1]["error"]["code"] == "replay_diverged"
    assert Script().text.startswith(said(told[:-1]))


async def test_a_sampled_call_of_other_engines_ends_in_an_error_event(stack: Stack) -> None:
    """Without forced ids, seed or temperature 0 nothing can go on, and the client is told at once."""
    bad, well = await two(stack, "tool", forced_ids=False, die_after=9)
    told = await events(stack, **TOOLS)
    assert told[-1]["error"]["code"] == "worker_lost"
    assert not well.requests
    assert "return_token_ids" not in bad.requests[-1].body


async def test_a_grammar_is_not_blamed_for_an_engine_that_ran_well(stack: Stack) -> None:
    """An engine that fails with a 500 after some tokens was perhaps killed: another one goes on."""
    _bad, _well = await two(stack, error_after=9)
    assert said(await events(stack, **SCHEMA)) == Script().text


async def test_a_grammar_that_stops_two_engines_at_one_token_is_given_to_no_third(
    stack: Stack,
) -> None:
    """Two engines that break down at the same place of one answer are enough."""
    engines = [await stack.add(Script(die_after=9), forced_ids=True) for _ in range(3)]
    told = await events(stack, **SCHEMA)
    assert "broke down" in told[-1]["error"]["message"]
    assert sum(len(engine.requests) for engine in engines) == 2


async def test_engines_killed_in_a_replay_are_not_the_grammars_doing(stack: Stack) -> None:
    """Two engines die in a row with no new token between: the same tokens had done an engine no harm before."""
    # At a pace: what an engine writes in the moment of its death may never arrive.
    first = await stack.add(Script(die_after=20, token_delay=0.02), forced_ids=True)
    dying = [await stack.add(Script(die_after=count), forced_ids=True) for count in (3, 0)]
    well = await stack.add(Script(), forced_ids=True)
    for worker in stack.table.all():
        worker.foreign = 0 if worker.row.name == first.url else 1000
        worker.suspect_until = float("inf") if worker.row.name == well.url else 0.0
    assert said(await events(stack, **SCHEMA)) == Script().text
    assert [len(engine.requests) for engine in (first, *dying)] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["plain", "tools"])
async def test_another_process_goes_on(stack: Stack, kind: str) -> None:
    """A stream rebuilt from what was sent, one event for several, goes on as the same stream."""
    shape, fields = {"plain": ("text", {}), "tools": ("tool", TOOLS)}[kind]
    bad, _well = await two(stack, shape)
    wanted = {"return_token_ids": True, **fields}
    whole = await events(stack, **wanted)
    stack.table.suspect(next(w for w in stack.table.all() if w.row.name == bad.url))
    body = CHAT | {"stream": True} | fields
    for count in (0, 2, 14, 25, len(whole) - 1, len(whole)):
        received: list[bytes] = []
        sink = EventSink("id-1", lambda data, received=received: received.append(data))  # type: ignore[misc]
        request = ApiRequest("/v1/chat/completions", body, "id-1", chat=True)
        stream = ClientStream.restored(request, sink, whole[:count], shows_ids=True)
        await stack.runner.stream(request, "", stream)
        text = b"".join(received)
        assert text.endswith(b"data: [DONE]\n\n")
        rest = [orjson.loads(part[6:]) for part in text.split(b"\n\n")[:-2]]
        told = [*whole[:count], *rest]
        assert count == 0 or one_identity(told)
        assert without_ids(deltas(told)) == without_ids(deltas(whole)) or count == 0, count
        ids = [[i for c in choices(t) for i in c.get("token_ids") or ()] for t in (whole, told)]
        assert count == 0 or ids[0] == ids[1]
