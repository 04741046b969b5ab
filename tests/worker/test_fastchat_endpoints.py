"""FastChat's worker endpoints, asked as FastChat's controller and API server ask them."""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest
from fastchat.conversation import Conversation, SeparatorStyle
from support.apps import no_lifespan, serving
from support.processes import eventually
from support.scripted_engine import Script, ScriptedEngine

from kodolly.engines.client import CONNECT, EngineClient
from kodolly.engines.stream import StreamClient
from kodolly.http.client import new_client
from kodolly.http.fastapi_app import JsonApp
from kodolly.http.upstream import Pool
from kodolly.protocol.wire import Extension
from kodolly.worker.agent import Agent, Announcement
from kodolly.worker.fastchat_endpoints import SAMPLING, FastChatEndpoints, WorkerRoute
from kodolly.worker.model import ServedModel
from kodolly.worker.registration import ControllerClient
from kodolly_templates import TokenizerTemplate, get_template

PROMPT = "### 명령어:\n안녕?\n\n### 응답:\n"
ASK: dict[str, Any] = {"model": "demo", "prompt": PROMPT, "echo": False}
# What fschat's API server sends for a client that named nothing but the messages.
SPARSE = ASK | dict.fromkeys(("logprobs", "top_k", "stop_token_ids", "best_of"))
# Every parameter of FastChat's wire with no value at all.
NULLS = dict.fromkeys(SAMPLING) | dict.fromkeys(
    ("max_new_tokens", "logprobs", "best_of", "use_beam_search", "images")
)


class Worker:
    """The face of one worker on a real socket, and the engine behind it."""

    def __init__(self, url: str, agent: Agent, engine: ScriptedEngine) -> None:
        self.url, self.agent, self.engine = url, agent, engine

    async def post(self, path: str, body: Any = None) -> Any:
        """The JSON of an answer with status 200."""
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{self.url}/{path}", json=body) as answer,
        ):
            assert answer.status == 200, await answer.text()
            return await answer.json(content_type=None)

    async def frames(self, **params: Any) -> list[Any]:
        """The frames of a stream, each ended by a NUL."""
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{self.url}/worker_generate_stream", json=ASK | params) as answer,
        ):
            assert answer.status == 200
            raw = await answer.read()
        assert raw.endswith(b"\0")
        return [json.loads(part) for part in raw.split(b"\0")[:-1]]

    @property
    def asked(self) -> dict[str, Any]:
        """The last request at the engine."""
        return self.engine.requests[-1].body


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Any]]:
    """Makes a worker of a model before an engine of a script."""
    async with AsyncExitStack() as stack:

        async def make_worker(
            script: Script | None = None, model: ServedModel | None = None
        ) -> Worker:
            engine = await stack.enter_async_context(ScriptedEngine(script))
            client = await stack.enter_async_context(new_client())
            agent = Agent(
                Announcement("http://worker", ("demo",), 1, Extension()),
                EngineClient(engine.url, None, client),
                [ControllerClient("http://controller", None, client)],
                None,
                start_timeout=5,
                drain_timeout=1,
            )
            streams = StreamClient(engine.url, None, Pool(CONNECT))
            agent.context_length = engine.script.context_length
            served = model or ServedModel("demo", "demo", get_template("dolly-ko"))
            app = JsonApp("worker", "", route_class=WorkerRoute, lifespan=no_lifespan, token=None)
            FastChatEndpoints(agent, streams, served).add_to(app)
            return Worker(await stack.enter_async_context(serving(app)), agent, engine)

        yield make_worker


@pytest.fixture
async def worker(make: Callable[..., Any]) -> Worker:
    """A worker of the undisturbed script, with Korean Dolly's template."""
    made: Worker = await make()
    return made


async def test_frames_carry_the_whole_text_so_far(worker: Worker) -> None:
    """Every frame's text begins with the one before; the last is the whole answer."""
    texts = [frame["text"] for frame in await worker.frames(max_new_tokens=100)]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert texts[0] == "물론이죠"
    assert texts[-1] == Script().text
    assert not any("\ufffd" in text for text in texts)


async def test_the_last_text_comes_twice_then_with_its_reason(worker: Worker) -> None:
    """FastChat's API server takes the reason only from a frame without new text."""
    frames = await worker.frames(max_new_tokens=100)
    assert [frame["finish_reason"] for frame in frames] == [None] * (len(frames) - 1) + ["stop"]
    assert frames[-2]["text"] == frames[-1]["text"]
    assert {frame["error_code"] for frame in frames} == {0}


async def test_the_last_frame_has_the_usage(worker: Worker) -> None:
    """Prompt, answer and their sum, in tokens; every frame has the three numbers."""
    frames = await worker.frames(max_new_tokens=5)
    asked = len(PROMPT.encode())
    assert frames[-1]["usage"] == {
        "prompt_tokens": asked,
        "completion_tokens": 5,
        "total_tokens": asked + 5,
    }
    assert all(set(frame["usage"]) == set(frames[-1]["usage"]) for frame in frames)
    assert frames[-1]["finish_reason"] == "length"


async def test_an_adapter_is_asked_by_its_own_name(make: Callable[..., Any]) -> None:
    """Of a worker's several models the engine gets the one that the request names."""
    worker = await make(Script(model="demo-ko"))
    told = worker.agent.announcement
    worker.agent.announcement = dataclasses.replace(told, model_names=("demo", "demo-ko"))
    frames = await worker.frames(model="demo-ko", max_new_tokens=3)
    assert frames[-1]["error_code"] == 0
    assert worker.asked["model"] == "demo-ko"


@pytest.mark.parametrize("given", [{}, {"echo": None}, {"echo": True}])
async def test_echo_is_on_unless_told_off(worker: Worker, given: dict[str, Any]) -> None:
    """FastChat's default: the prompt stands before the answer in every frame."""
    body = {"model": "demo", "prompt": PROMPT, "max_new_tokens": 3} | given
    last = await worker.post("worker_generate", body)
    expected = Script().answer(3).text
    assert last["text"] == (PROMPT if given.get("echo", True) else "") + expected


async def test_whole_answer_is_the_last_frame(worker: Worker) -> None:
    """/worker_generate answers one JSON object, the stream's last."""
    whole = await worker.post("worker_generate", ASK | {"max_new_tokens": 9})
    assert whole == (await worker.frames(max_new_tokens=9))[-1]


async def test_parameters_reach_the_engine(worker: Worker) -> None:
    """FastChat's names become the completions API's; the prompt is not touched."""
    sampling = {
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": -1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "stop": ["### 끝"],
        "stop_token_ids": [0],
    }
    await worker.frames(**sampling, max_new_tokens=7)
    assert {name: worker.asked[name] for name in sampling} == sampling
    assert worker.asked["max_tokens"] == 7
    assert worker.asked["prompt"] == PROMPT


@pytest.mark.parametrize("nulls", [NULLS, SPARSE, NULLS | {"model": None}])
async def test_null_parameters_do_not_wedge_it(worker: Worker, nulls: dict[str, Any]) -> None:
    """Nulls count as absent, time and again: FastChat's worker loses a slot to each (#3328)."""
    for _ in range(10):
        assert (await worker.frames(**nulls))[-1]["text"] == Script().text
    assert worker.asked["max_tokens"] == 256
    assert None not in worker.asked.values()
    assert (await worker.post("worker_get_status"))["queue_length"] == 0


@pytest.mark.parametrize("stop", ["모델", ["없음", "모델"]])
async def test_a_stop_string_ends_the_answer(worker: Worker, stop: Any) -> None:
    """One string or a list; the answer ends before it with reason stop."""
    last = (await worker.frames(stop=stop))[-1]
    assert (last["text"], last["finish_reason"]) == (Script().answer(100, ["모델"]).text, "stop")


@pytest.mark.parametrize("path", ["worker_generate", "worker_generate_stream"])
@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"model": "other"}, 40301),
        ({"prompt": None}, 40001),
        ({"prompt": [1, 2]}, 40001),
        ({"temperature": 9.0}, 40001),
        ({"prompt": "가" * 100}, 40303),
    ],
)
async def test_what_cannot_be_served_is_an_error_frame(
    make: Callable[..., Any], path: str, params: dict[str, Any], code: int
) -> None:
    """Status 200, a message, and FastChat's number of the fault."""
    worker = await make(Script(context_length=200))
    if path == "worker_generate":
        answer = await worker.post(path, ASK | params)
    else:
        (answer,) = await worker.frames(**params)
    assert answer["error_code"] == code
    assert answer["text"]


async def test_a_busy_engine_is_an_overload(make: Callable[..., Any]) -> None:
    """503 of the engine is FastChat's 42903."""
    worker = await make(Script(fail_status=503))
    assert [frame["error_code"] for frame in await worker.frames()] == [42903]


@pytest.mark.parametrize("fault", ["die_after", "error_after"])
async def test_an_engine_lost_in_the_middle_ends_with_an_error_frame(
    make: Callable[..., Any], fault: str
) -> None:
    """The text so far stands, then comes 50001; there is no frame with a reason."""
    script = Script()
    setattr(script, fault, 3)
    worker = await make(script)
    *good, last = await worker.frames()
    assert good[-1]["text"] == Script().answer(3).text
    assert all(frame["finish_reason"] is None for frame in good)
    assert last["error_code"] == 50001


async def test_a_client_that_goes_stops_the_engine(make: Callable[..., Any]) -> None:
    """Closing the stream aborts the generation."""
    worker = await make(Script(length=4000, token_delay=0.02))
    asking = asyncio.create_task(worker.frames(max_new_tokens=4000))
    await eventually(lambda: worker.engine.running == 1)
    asking.cancel()
    await eventually(lambda: worker.engine.aborted == 1 and worker.engine.running == 0)


async def test_status_tells_models_speed_and_queue(make: Callable[..., Any]) -> None:
    """The three fields FastChat's controller registers a worker by; the queue is the engine's."""
    worker = await make(Script(load=3))
    status = await worker.post("worker_get_status")
    assert status == {"model_names": ["demo"], "speed": 1, "queue_length": 3}


async def test_tokens_are_counted_by_the_engine(worker: Worker) -> None:
    """/count_token, with or without a model, counts as the engine's tokenizer does."""
    for body in ({"prompt": "안녕"}, {"prompt": "안녕", "model": "demo"}):
        assert await worker.post("count_token", body) == {"count": 6, "error_code": 0}


async def test_counting_without_an_engine_still_answers(worker: Worker) -> None:
    """FastChat's API server crashes without a count: it gets one, and a code beside it."""
    await worker.engine.__aexit__(None, None, None)
    answer = await worker.post("count_token", {"prompt": "안녕"})
    assert (answer["count"], answer["error_code"]) == (0, 50001)


async def test_details_tell_the_context_length(make: Callable[..., Any]) -> None:
    """Tokens of prompt and answer together."""
    worker = await make(Script(context_length=777))
    assert await worker.post("model_details", {"model": "demo"}) == {"context_length": 777}


async def test_an_unknown_context_length_is_still_a_number(worker: Worker) -> None:
    """FastChat's API server calculates with it; null would crash every request."""
    worker.agent.context_length = None
    assert await worker.post("model_details", {"model": "demo"}) == {"context_length": 2048}


@pytest.mark.parametrize("name", ["dolly-ko", "dolly-v2", "koalpaca"])
async def test_the_conversation_crosses_the_wire_whole(make: Callable[..., Any], name: str) -> None:
    """FastChat builds the template's own prompt from it; the style is an int of 0.2.36."""
    template = get_template(name)
    worker = await make(model=ServedModel("demo", "demo", template))
    told = (await worker.post("worker_get_conv_template", {"model": "demo"}))["conv"]
    assert type(told["sep_style"]) is int
    assert told["messages"] == []
    assert set(told) == {field.name for field in dataclasses.fields(Conversation)}
    conversation = Conversation(**told | {"sep_style": SeparatorStyle(told["sep_style"])})
    for role, text in zip((0, 1, 0, 1), ("하나", "둘", "셋", None), strict=True):
        conversation.append_message(conversation.roles[role], text)
    turns = zip(("user", "assistant", "user"), ("하나", "둘", "셋"), strict=True)
    messages = [{"role": role, "content": text} for role, text in turns]
    assert conversation.get_prompt() == template.prompt(messages)
    assert told["stop_str"] == list(template.stop)


@pytest.mark.parametrize("template", [None, "tokenizer"])
async def test_a_model_without_such_a_template_says_so(
    make: Callable[..., Any], template: str | None
) -> None:
    """501 and a reason where FastChat's words cannot say the model's own chat template."""
    own = TokenizerTemplate("{{ messages }}") if template else None
    worker = await make(model=ServedModel("demo", "demo", own))
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{worker.url}/worker_get_conv_template", json={"model": "demo"}) as answer,
    ):
        assert answer.status == 501
        assert (await answer.json())["error_code"] == 40001


async def test_embeddings_are_refused_as_fastchat_refuses(worker: Worker) -> None:
    """An error object with status 200, which its API server passes on."""
    answer = await worker.post("worker_get_embeddings", {"model": "demo", "input": ["안녕"]})
    assert (answer["error_code"], bool(answer["text"])) == (40001, True)


@pytest.mark.parametrize("path", ["worker_generate", "worker_generate_stream", "count_token"])
async def test_a_body_that_is_no_object_is_400(worker: Worker, path: str) -> None:
    """Before any frame, and in words."""
    for body in (b"{", b"[]", b"\xff"):
        async with (
            aiohttp.ClientSession() as http,
            http.post(
                f"{worker.url}/{path}", data=body, headers={"Content-Type": "application/json"}
            ) as answer,
        ):
            assert answer.status == 400
