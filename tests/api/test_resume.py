"""A worker fails in the middle of an answer, and the client does not notice."""

import asyncio
from typing import Any

import aiohttp
import openai
import orjson
import pytest
from support.processes import eventually
from support.script import KOREAN_TOKENS, Script
from support.scripted_engine import ScriptedEngine

from kodolly.api.request import ApiRequest
from kodolly.api.resume.continuation_request import continuation_request
from kodolly.api.resume.journal import Choice
from kodolly.protocol.wire import WorkerState
from kodolly.settings import ApiSettings

from .conftest import Stack

QUESTION = "한국의 수도는?"
CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}]}
COMPLETION: dict[str, Any] = {"model": "demo", "prompt": QUESTION, "max_tokens": 200}
USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
PATHS = {"chat": ("/v1/chat/completions", CHAT), "completion": ("/v1/completions", COMPLETION)}

Events = list[dict[str, Any]]


async def events(stack: Stack, kind: str = "chat", **fields: Any) -> Events:
    """The decoded events of a stream, whose framing is checked."""
    path, body = PATHS[kind]
    async with (
        aiohttp.ClientSession() as http,
        http.post(stack.url + path, json=body | {"stream": True} | fields) as answer,
    ):
        text = (await answer.read()).decode()
        assert answer.status == 200, text
    assert text.endswith("\n\n")
    parts = text.removesuffix("\n\n").split("\n\n")
    assert all(part.startswith("data: ") and "\n" not in part for part in parts), text
    if not parts[-1].startswith('data: {"error"'):
        assert parts.pop() == "data: [DONE]"
    assert "data: [DONE]" not in parts
    return [orjson.loads(part.removeprefix("data: ")) for part in parts]


def choices(told: Events, index: int = 0) -> list[dict[str, Any]]:
    return [c for event in told for c in event.get("choices", ()) if c["index"] == index]


def said(told: Events, index: int = 0) -> str:
    """All text of one answer."""
    texts = [c["delta"].get("content") if "delta" in c else c["text"] for c in choices(told, index)]
    return "".join(text or "" for text in texts)


async def pair(stack: Stack, **faults: Any) -> tuple[ScriptedEngine, ScriptedEngine]:
    """A worker that fails, which is asked first, and one that is well."""
    script = {name: faults.pop(name) for name in ("length", "tokens") if name in faults}
    well = await stack.add(Script(**script))
    bad = await stack.add(Script(**script, **faults))
    return bad, well


def prefer(stack: Stack, bad: ScriptedEngine, well: ScriptedEngine) -> None:
    """Makes the bad one look idle and trusted, and the other busy."""
    for worker in stack.table.all():
        worker.foreign = 1000 if worker.row.name == well.url else 0
        worker.suspect_until = 0.0


def one_identity(told: Events) -> bool:
    return len({(e["id"], e["object"], e["created"], e["model"]) for e in told}) == 1


@pytest.mark.parametrize("kind", ["chat", "completion"])
async def test_no_cut_shows(stack: Stack, kind: str) -> None:
    """Cut after any token, also inside a syllable or emoji, the stream is that of one engine."""
    bad, well = await pair(stack)
    undisturbed = await events(stack, kind, **USAGE)
    for cut in range(len(KOREAN_TOKENS) + 1):
        bad.script.die_after = cut
        prefer(stack, bad, well)
        told = await events(stack, kind, **USAGE)
        assert said(told) == said(undisturbed) == Script().text, cut
        assert one_identity(told)
        assert told[-1]["usage"] == undisturbed[-1]["usage"]
        ends = [c["finish_reason"] for c in choices(told) if c["finish_reason"]]
        assert ends == ["stop"]
        roles = [c for c in choices(told) if "role" in c.get("delta", ())]
        assert len(roles) == (kind == "chat")
    assert sum(seen.outcome == "died" for seen in bad.requests) == len(KOREAN_TOKENS) + 1


async def test_several_answers_at_once_all_go_on(stack: Stack) -> None:
    """With n > 1 and several prompts each answer is continued by itself."""
    bad, well = await pair(stack, die_after=7)
    prefer(stack, bad, well)
    told = await events(stack, n=3, **USAGE)
    assert [said(told, index) for index in range(3)] == [Script().text] * 3
    assert told[-1]["usage"]["completion_tokens"] == 3 * (Script().size + 1)

    prefer(stack, bad, well)
    prompts = ["하나", "둘"]
    bad.script.die_after = 3
    told = await events(stack, "completion", prompt=prompts, n=2, **USAGE)
    assert [said(told, index) for index in range(4)] == [Script().text] * 4
    assert told[-1]["usage"]["prompt_tokens"] == sum(len(p.encode()) for p in prompts)


@pytest.mark.parametrize("stop", [" 밤, ㅋ", "꿈을", "끝", "🙂"])
async def test_a_stop_string_that_straddles_the_cut_is_found(stack: Stack, stop: str) -> None:
    """Wherever the stream is cut, the answer ends before the stop string and says so."""
    bad, well = await pair(stack)
    text = Script().text
    for cut in range(1, len(KOREAN_TOKENS), 2):
        bad.script.die_after = cut
        prefer(stack, bad, well)
        told = await events(stack, stop=[stop])
        assert said(told) == text[: text.index(stop)], cut
        last = choices(told)[-1]
        assert (last["finish_reason"], last["stop_reason"]) == ("stop", stop)


async def test_the_template_s_stop_strings_hold_after_a_cut_too(stack: Stack) -> None:
    """What the model's template stops at is looked for in the continuation."""
    well = await stack.add(Script(), stop=["굵은"])
    bad = await stack.add(Script(die_after=5), stop=["굵은"])
    prefer(stack, bad, well)
    told = await events(stack)
    assert said(told) == Script().text.partition("굵은")[0]
    assert bad.requests[-1].outcome == "died"


@pytest.mark.parametrize("limit", [8, 13, 20])
async def test_a_length_limit_counts_both_parts(stack: Stack, limit: int) -> None:
    """The bound is on the whole answer, and reaching it is the reason it ends."""
    bad, well = await pair(stack, die_after=7)
    undisturbed = await events(stack, max_tokens=limit, **USAGE)
    prefer(stack, bad, well)
    told = await events(stack, max_tokens=limit, **USAGE)
    assert said(told) == said(undisturbed)
    assert choices(told)[-1]["finish_reason"] == "length"
    assert told[-1]["usage"] == undisturbed[-1]["usage"]
    assert told[-1]["usage"]["completion_tokens"] == limit


async def test_token_ids_are_told_to_those_who_ask_only(stack: Stack) -> None:
    """They are asked of the engine for our own use and taken out again, before and after a cut."""
    bad, well = await pair(stack)
    whole = await events(stack, return_token_ids=True)
    for cut in (5, 13, 23):  # the last two inside a character
        bad.script.die_after = cut
        prefer(stack, bad, well)
        told = await events(stack, return_token_ids=True)
        ids = [[i for c in choices(t) for i in c.get("token_ids") or ()] for t in (whole, told)]
        assert ids[0] == ids[1]
        assert told[0]["prompt_token_ids"]

    prefer(stack, bad, well)
    told = await events(stack)
    assert not any(c.get("token_ids") for c in choices(told))
    assert not any(event.get("prompt_token_ids") for event in told)


async def test_a_client_library_sees_one_stream(stack: Stack) -> None:
    """The openai client reads a moved stream as any other."""
    bad, well = await pair(stack, die_after=9)
    prefer(stack, bad, well)
    async with openai.AsyncOpenAI(
        base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=20
    ) as api:
        stream = await api.chat.completions.create(**CHAT, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == Script().text
    assert bad.requests[-1].outcome == "died"


async def test_an_error_event_is_not_the_end(stack: Stack) -> None:
    """An engine that breaks off with an error event is replaced as one that died."""
    bad, well = await pair(stack, error_after=6)
    prefer(stack, bad, well)
    assert said(await events(stack)) == Script().text
    assert bad.requests[-1].outcome == "refused"


async def test_a_long_answer_is_kept_as_tokens(stack: Stack) -> None:
    """Beyond the raw block, tokens and text are remembered and go on exactly all the same."""
    bad, well = await pair(stack, length=1500)
    bad.script.die_after = 1201
    prefer(stack, bad, well)
    told = await events(stack, **USAGE)
    assert said(told) == well.script.text
    assert told[-1]["usage"]["completion_tokens"] == 1501
    assert bad.requests[-1].outcome == "died"


async def test_one_worker_after_another_may_fail(stack: Stack) -> None:
    """A stream is moved as often as needed, also when a continuation is cut again."""
    engines = [await stack.add(Script(die_after=11)) for _ in range(2)]
    told = await events(stack, **USAGE)
    assert said(told) == Script().text
    assert told[-1]["usage"]["completion_tokens"] == Script().size + 1
    assert sum(seen.outcome == "died" for engine in engines for seen in engine.requests) == 3


async def test_log_probabilities_go_on_in_their_own_form(stack: Stack) -> None:
    """Those of the continuation are what the engine would have told, in a chat's form as before."""
    bad, well = await pair(stack)
    for kind, fields in (
        ("chat", {"logprobs": True, "top_logprobs": 2}),
        ("completion", {"logprobs": 2}),
    ):
        bad.script.die_after = None
        whole = await events(stack, kind, **fields)
        for cut in (1, 13, 20):
            bad.script.die_after = cut
            prefer(stack, bad, well)
            told = await events(stack, kind, **fields)
            assert logprobs(told) == logprobs(whole), (kind, cut)
    assert bad.requests[-1].outcome == "died"


def logprobs(told: Events) -> list[Any]:
    """The entries of an answer one after the other, however they came in events."""
    parts = [c["logprobs"] for c in choices(told) if c.get("logprobs")]
    if "content" in parts[0]:
        return [
            (entry["token"], entry["logprob"])  # of half a character vLLM tells no true bytes
            for part in parts
            for entry in part["content"]
        ]
    return [entry for part in parts for entry in zip(*(part[n] for n in sorted(part)), strict=True)]


async def test_an_engine_that_aborts_has_not_finished(stack: Stack) -> None:
    """vLLM ends its answers with the reason "abort" when it is told to stop; clients never see it."""
    bad, well = await pair(stack, abort_after=8)
    prefer(stack, bad, well)
    told = await events(stack)
    assert said(told) == Script().text
    assert [c["finish_reason"] for c in choices(told) if c["finish_reason"]] == ["stop"]
    assert bad.requests[-1].outcome == "died"


@pytest.mark.parametrize("status", [429, 503])
async def test_a_worker_that_is_too_busy_to_go_on_is_passed_over(stack: Stack, status: int) -> None:
    """A continuation that one worker refuses is asked of the next."""
    bad, well = await pair(stack, die_after=4)
    busy = await stack.add(Script(fail_status=status))
    for worker in stack.table.all():
        worker.inflight = {bad.url: 0, busy.url: 10, well.url: 20}[worker.row.name]
    assert said(await events(stack)) == Script().text
    assert [seen.outcome for seen in busy.requests] == ["refused"]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL]},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": ".*"}},
    ],
)
async def test_what_tokens_do_not_carry_ends_in_an_error_event(
    stack: Stack, fields: dict[str, Any]
) -> None:
    """Tool calls and constrained output have a state in the engine: they are not continued."""
    bad, well = await pair(stack, die_after=4)
    prefer(stack, bad, well)
    told = await events(stack, **fields)
    assert told[-1]["error"]["code"] == "worker_lost"
    assert not well.requests

    bad.script.die_after = 0
    prefer(stack, bad, well)
    assert said(await events(stack, **fields)) == Script().text  # nothing was sent: tried again


class TestSilence:
    """Engines that keep the connection and say nothing."""

    @pytest.fixture
    def settings(self) -> ApiSettings:
        return ApiSettings(read_timeout=30.0, connect_timeout=1.0)

    @pytest.mark.parametrize("state", [WorkerState.STALLED, WorkerState.LOST])
    async def test_a_stream_leaves_a_worker_that_left_rotation(
        self, stack: Stack, state: WorkerState
    ) -> None:
        """The worker's state reaches the API, which moves what is silent there."""
        bad, well = await pair(stack, hang_after=5)
        prefer(stack, bad, well)
        asking = asyncio.create_task(events(stack))
        await eventually(lambda: bad.running == 1)
        stack.state(bad, state)
        assert said(await asking) == Script().text
        assert bad.requests[-1].outcome == "aborted"

    async def test_a_stream_that_goes_on_stays_where_it_is(self, stack: Stack) -> None:
        """A worker whose agent was lost may still make tokens: nothing is moved for its own sake."""
        slow = Script(token_delay=0.1)
        engine = await stack.add(slow)
        well = await stack.add(Script())
        prefer(stack, engine, well)
        asking = asyncio.create_task(events(stack))
        await eventually(lambda: engine.running == 1)
        stack.state(engine, WorkerState.LOST)
        assert said(await asking) == slow.text
        assert not well.requests

    async def test_an_answer_that_is_not_streamed_is_asked_for_again(self, stack: Stack) -> None:
        """Nothing of it was sent, so another worker makes it from the start."""
        bad, well = await pair(stack, hang_after=5)
        prefer(stack, bad, well)
        async with aiohttp.ClientSession() as http:
            asking = asyncio.create_task(http.post(f"{stack.url}/v1/chat/completions", json=CHAT))
            await eventually(lambda: bad.running == 1)
            stack.state(bad, WorkerState.STALLED)
            answer = await (await asking).json()
        assert answer["choices"][0]["message"]["content"] == Script().text


def test_a_seed_stays_within_what_engines_take() -> None:
    """A continuation draws other numbers, also from the greatest seed there is."""
    body = {"model": "demo", "prompt": "a", "seed": 2**63 - 1}
    choice = Choice(0, prompt=[1, 2])
    choice.ids.extend([3, 4])
    seed = continuation_request(ApiRequest("/v1/completions", body, "id", chat=False), choice, 8)[
        "seed"
    ]
    assert seed != body["seed"]
    assert -(2**63) <= seed < 2**63
