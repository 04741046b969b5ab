"""Real CPU vLLM behind our controller and API: a LLaMA, a GPT-NeoX and an encoder, asked as a client asks.

`make test-vllm`. All engines start at once and take a minute on a free machine, far longer on a
busy one. The last test kills a worker: keep it last.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema  # type: ignore[import-untyped]
import openai
import psutil  # type: ignore[import-untyped]
import pytest
from support.apps import serving
from support.cutter import Cutter
from support.engine_contract import CHECKS, Check, a_key_is_asked_for
from support.poison import honest_calls_survive
from support.processes import Process, eventually, free_port, start, wait_http, wait_until
from support.tiny_encoder import LONGEST, SIZE, make_tiny_encoder
from support.tiny_models import make_tiny_neox
from support.tool_models import with_tools

import kodolly_templates
from kodolly.api.app import create_app
from kodolly.engines.embedder.model import Encoder, Recipe
from kodolly.engines.metrics import requests_in_engine, totals
from kodolly.protocol.wire import Extension, Snapshot, WorkerRow, WorkerState
from kodolly.settings import ApiSettings

ROOT = Path(__file__).parents[2]
ENGINE_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SMOLLM2 = ROOT / ".kodolly" / "models" / "smollm2-135m-instruct"
KINDS = ("llama", "neox")
VECTORS = "vectors"  # makes embeddings
START = 900.0  # seconds for both engines on a machine that has other work
TOKENS = 40
LLAMA_VOCABULARY = 49152
QUESTIONS = (
    "대한민국의 수도는 어디인가요? 한 문장으로 답해 주세요. 🙂",
    "What is the capital of France?",
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not ENGINE_PYTHON.exists(), reason="no .venv-vllm here: `make vllm-env` makes it"
    ),
    pytest.mark.skipif(
        not (SMOLLM2 / "model_card.json").exists(),
        reason="no SmolLM2 here: `make model` fetches it",
    ),
]


@dataclass(frozen=True)
class Engine:
    """One worker of the stack and the vLLM beside it."""

    model: str
    directory: Path
    worker: Process
    url: str

    @property
    def processes(self) -> list[psutil.Process]:
        """The worker agent's descendants: leash, API server, engine core, its own worker."""
        return list(psutil.Process(self.worker.pid).children(recursive=True))

    @property
    def key(self) -> str:
        """The API key that the agent gave to its engine."""
        keys = {process.environ().get("VLLM_API_KEY") for process in self.processes}
        return str(next(key for key in keys if key))


@dataclass(frozen=True)
class Stack:
    """Controller, API and two workers, all processes of the real command."""

    api: str
    engines: dict[str, Engine]
    logs: Path

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.api}/v1", api_key="any", max_retries=0, timeout=300)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    logs = tmp_path_factory.mktemp("logs")
    made = tmp_path_factory.mktemp("m")
    models = {
        "llama": with_tools(SMOLLM2, made / "llama"),
        "neox": make_tiny_neox(made / "tiny-neox"),
        VECTORS: make_tiny_encoder(made / "tiny-encoder"),
    }
    controller, api = free_port(), free_port()
    address = f"http://127.0.0.1:{controller}"
    env = {"KODOLLY_TOKEN": secrets.token_hex(16), "OMP_NUM_THREADS": "1"}

    with ExitStack() as processes:

        def kodolly(name: str, command: str, *args: str | int) -> Process:
            argv = [sys.executable, "-m", "kodolly", command, *map(str, args)]
            return processes.enter_context(start(argv, env, cwd=ROOT, log=logs / f"{name}.log"))

        keeper = kodolly("controller", "controller", "--port", controller)
        wait_http(f"{address}/health", process=keeper)
        door = kodolly("api", "api", "--port", api, "--controller", address)
        engines = {}
        for kind, directory in models.items():
            port = free_port()
            options = {
                "--engine": "vllm",
                "--engine-python": ENGINE_PYTHON,
                "--model": directory,
                "--model-name": kind,
                "--port": free_port(),
                "--engine-port": port,
                "--controller": address,
                "--dtype": "float32",
                "--max-model-len": LONGEST if kind == VECTORS else 1024,
                "--max-num-seqs": 8,
                "--start-timeout": START,
                "--drain-timeout": 1,
            }
            args = [str(word) for pair in options.items() for word in pair]
            if kind == "llama":
                parser = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
                args += [f"--engine-args={word}" for word in parser]
            worker = kodolly(kind, "worker", *args)
            engines[kind] = Engine(kind, directory, worker, f"http://127.0.0.1:{port}")
        wait_http(f"http://127.0.0.1:{api}/health", process=door)
        stack = Stack(f"http://127.0.0.1:{api}", engines, logs)
        for kind, engine in engines.items():
            is_served = partial(is_offered, stack, kind)
            wait_until(is_served, START, what=f"model {kind}", process=engine.worker)
        yield stack


def served(stack: Stack) -> set[str]:
    """The models that the API can answer for now."""
    try:
        with stack.client() as client:
            return {model.id for model in client.models.list()}
    except openai.APIError:
        return set()


def is_offered(stack: Stack, model: str) -> bool:
    return model in served(stack)


def messages(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, stack: Stack) -> Engine:
    return stack.engines[request.param]


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{stack.api}/v1", api_key="any", max_retries=0, timeout=300
    ) as client:
        yield client


def test_all_models_are_listed(stack: Stack) -> None:
    """One API offers the models of all workers, and tells what each can do."""
    assert served(stack) == {*KINDS, VECTORS}
    with stack.client() as client:
        models = {m.id: (m.model_extra or {})["capabilities"] for m in client.models.list()}
    text = ["chat", "completions", "structured_outputs"]
    assert models == {
        "llama": ["chat", "completions", "tools", "structured_outputs"],
        "neox": text,
        VECTORS: ["embeddings"],
    }


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "minLength": 1, "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def chat_with_calls() -> list[Any]:
    """Three questions that a call answered each, and a fourth: so a small model writes a call too."""
    turns: list[Any] = []
    for city in ("Paris", "Rome", "Oslo"):
        function = {"name": "weather", "arguments": json.dumps({"city": city})}
        call = {"id": f"call_{city}", "type": "function", "function": function}
        turns += messages(f"Weather in {city}?")
        turns.append({"role": "assistant", "content": None, "tool_calls": [call]})
    return [*turns, *messages("Weather in Seoul?")]


@pytest.mark.parametrize(
    "choice", ["auto", "required", {"type": "function", "function": {"name": "weather"}}], ids=str
)
def test_tools_work_as_shipped(stack: Stack, choice: Any) -> None:
    """Nobody named a parser: the model's chat template tells which. Whole and streamed."""
    asked: dict[str, Any] = {
        "model": "llama",
        "messages": chat_with_calls(),
        "tools": [WEATHER],
        "tool_choice": choice,
        "temperature": 0,
        "max_tokens": 60,
    }
    with stack.client() as client:
        calls = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
        with client.chat.completions.create(**asked, stream=True) as stream:
            deltas = [d for c in stream if c.choices for d in c.choices[0].delta.tool_calls or ()]
    assert [call.function.name for call in calls] == ["weather"]
    assert set(json.loads(calls[0].function.arguments)) == {"city"}
    functions = [delta.function for delta in deltas if delta.function]
    assert "".join(f.arguments or "" for f in functions) == calls[0].function.arguments
    assert [f.name for f in functions if f.name] == ["weather"]


def test_a_template_without_tools_refuses_them(stack: Stack) -> None:
    """By name, before the engine sees them: no prompt would hold them."""
    with stack.client() as client, pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model="neox", messages=messages("안녕"), tools=[WEATHER])
    assert refusal.value.param == "tools"


async def test_answers_to_a_schema_are_valid_json(client: openai.AsyncOpenAI) -> None:
    """Hot, with bounds of strings and a wish for line breaks and quotes: where xgrammar's are not always."""
    text = {"type": "string", "minLength": 2, "maxLength": 12}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"title": text, "line": text},
        "required": ["title", "line"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "poem", "schema": schema}}

    async def poem(seed: int) -> Any:
        answer = await client.chat.completions.create(
            model="llama",
            messages=messages('Two lines of a poem in "quotes", with tabs and line breaks.'),
            temperature=2.0,
            seed=seed,
            max_tokens=120,
            response_format=form,
        )
        return answer.choices[0]

    choices = await asyncio.gather(*map(poem, range(16)))
    whole = [c.message.content for c in choices if c.finish_reason == "stop"]
    assert len(whole) >= 4
    for content in whole:
        jsonschema.validate(json.loads(content), schema)


def test_embeddings(stack: Stack) -> None:
    """OpenAI's client gets the vectors that the encoder makes by itself."""
    encoder = Encoder(
        stack.engines[VECTORS].directory,
        Recipe.read(stack.engines[VECTORS].directory, None),
        dtype="float32",
        device="cpu",
    )
    texts = ["서울은 대한민국의 수도입니다.", "a"]
    with stack.client() as client:
        answer = client.embeddings.create(model=VECTORS, input=texts)
        plain = client.embeddings.create(model=VECTORS, input=texts[0], encoding_format="float")
        with pytest.raises(openai.BadRequestError, match="use /v1/embeddings"):
            client.chat.completions.create(model=VECTORS, messages=messages("안녕"))
        with pytest.raises(openai.BadRequestError) as refusal:
            client.embeddings.create(model=VECTORS, input="a " * 200)
    rows = [encoder.tokens(text) for text in texts]
    assert answer.usage.prompt_tokens == sum(map(len, rows))
    for made, own in zip(answer.data, encoder.vectors(rows), strict=True):
        assert len(made.embedding) == SIZE
        assert made.embedding == pytest.approx(own, abs=1e-3)
    assert plain.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-5)
    assert (refusal.value.param, refusal.value.code) == ("input", "context_length_exceeded")


async def test_tokens_of_a_chat_are_those_of_its_prompt(stack: Stack, engine: Engine) -> None:
    """/tokenize counts what the chat itself is billed for; /detokenize turns tokens back."""
    chat = {"model": engine.model, "messages": messages(QUESTIONS[0])}
    async with aiohttp.ClientSession() as http:

        async def post(path: str, body: Any) -> Any:
            async with http.post(stack.api + path, json=body) as answer:
                assert answer.status == 200
                return await answer.json()

        tokens = await post("/tokenize", chat)
        answer = await post("/v1/chat/completions", chat | {"max_tokens": 1})
        text = await post("/detokenize", {"model": engine.model, "tokens": tokens["tokens"]})
    assert tokens["count"] == answer["usage"]["prompt_tokens"] == len(tokens["tokens"])
    assert QUESTIONS[0] in text["prompt"]


def test_chat_streams_what_it_answers(stack: Stack, engine: Engine) -> None:
    """Through the API the deltas of a greedy Korean chat, put together, are the whole answer."""
    asked: dict[str, Any] = {
        "model": engine.model,
        "messages": messages(QUESTIONS[0]),
        "temperature": 0,
        "max_tokens": TOKENS,
    }
    with stack.client() as client:
        whole = client.chat.completions.create(**asked).choices[0]
        with client.chat.completions.create(**asked, stream=True) as stream:
            chunks = [chunk.choices[0] for chunk in stream if chunk.choices]
    text = "".join(chunk.delta.content or "" for chunk in chunks)
    assert text
    assert text == whole.message.content
    assert "\ufffd" not in "".join(chunk.delta.content or "" for chunk in chunks[:-1])
    assert chunks[-1].finish_reason == whole.finish_reason


async def test_both_models_answer_at_once(client: openai.AsyncOpenAI) -> None:
    """Requests for both models run side by side, and each answer is of the model asked."""
    answers = await asyncio.gather(
        *(
            client.chat.completions.create(
                model=model, messages=messages(question), max_tokens=8, temperature=0
            )
            for model in KINDS
            for question in QUESTIONS
        )
    )
    assert [answer.model for answer in answers] == [kind for kind in KINDS for _ in QUESTIONS]
    assert all(answer.usage and answer.usage.completion_tokens for answer in answers)


async def test_greedy_tokens_are_those_of_transformers(
    client: openai.AsyncOpenAI, engine: Engine
) -> None:
    """A greedy chat has the prompt tokens and the answer tokens of transformers' own generate."""
    reference = Reference(engine.directory)
    for question in QUESTIONS:
        answer = await client.chat.completions.create(
            model=engine.model,
            messages=messages(question),
            temperature=0,
            max_tokens=TOKENS,
            extra_body={"return_token_ids": True},
        )
        prompt = reference.prompt(question)
        told = answer.model_extra or {}
        made = (answer.choices[0].model_extra or {})["token_ids"]
        assert told["prompt_token_ids"] == prompt
        assert made == reference.generate(prompt)


class Reference:
    """transformers' own greedy answer, in float32."""

    def __init__(self, directory: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.directory = directory
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def prompt(self, question: str) -> list[int]:
        """Ids of a one-turn chat in the model's dialect."""
        template = kodolly_templates.load(self.directory)
        ours = template.jinja() if isinstance(template, kodolly_templates.Template) else None
        encoded = self.tokenizer.apply_chat_template(
            messages(question), chat_template=ours, add_generation_prompt=True, return_dict=True
        )
        return list(encoded["input_ids"])

    def generate(self, prompt: list[int]) -> list[int]:
        """Ids of the answer, its end mark included."""
        import torch

        output = self.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        return [int(token) for token in output[0][len(prompt) :]]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_contract(check: Check, engine: Engine) -> None:
    """Real vLLM does on the wire what every engine must do."""
    await check(engine.url, engine.model, engine.key)


async def test_key(engine: Engine) -> None:
    """The engine asks for the key that the agent gave it."""
    await a_key_is_asked_for(engine.url, engine.model, engine.key)


def test_key_is_in_no_argument(engine: Engine) -> None:
    """No process of the engine shows its key in its command line."""
    shown = " ".join(" ".join(process.cmdline()) for process in engine.processes)
    assert engine.url.rpartition(":")[2] in shown
    assert engine.key not in shown


async def metric(engine: Engine, name: str) -> float:
    """A sum over all labels of one of the engine's counters."""
    text = await metrics(engine)
    return sum(float(value) for value in re.findall(rf"^{name}{{.*}} (\S+)$", text, re.MULTILINE))


async def metrics(engine: Engine) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{engine.url}/metrics") as answer:
        return await answer.text()


async def test_gone_client_frees_the_engine(client: openai.AsyncOpenAI, engine: Engine) -> None:
    """A client that leaves its stream ends the generation in the engine behind API and worker."""
    before = await metric(engine, "vllm:generation_tokens_total")
    stream = await client.chat.completions.create(
        model=engine.model,
        messages=messages(QUESTIONS[0]),
        max_tokens=600,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    await stream.close()

    async def is_free() -> bool:
        return requests_in_engine(totals(await metrics(engine))) == 0

    await eventually(is_free, 30, what="idle engine")
    made = await metric(engine, "vllm:generation_tokens_total") - before
    assert 0 < made < 600


async def test_honest_calls_do_not_notice_poison_beside_them(stack: Stack) -> None:
    """Eight honest calls beside eighteen whose values break arithmetic: not one differs or fails."""
    await honest_calls_survive(stack.api, "llama", LLAMA_VOCABULARY)


def test_stop_string_of_the_template(stack: Stack) -> None:
    """The neox model's dialect adds its stop strings, and a stop of the client's own still works."""
    asked: dict[str, Any] = {"model": "neox", "messages": messages("안녕"), "temperature": 0}
    with stack.client() as client:
        text = client.chat.completions.create(**asked, max_tokens=TOKENS).choices[0].message.content
        assert text
        cut = text[len(text) // 2]
        answer = client.chat.completions.create(**asked, max_tokens=TOKENS, stop=cut).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.message.content == text.partition(cut)[0]


@asynccontextmanager
async def two_doors(engine: Engine) -> AsyncIterator[tuple[str, list[Cutter]]]:
    """An API that sees one engine as two workers, and can be cut off from each."""
    template = kodolly_templates.load(engine.directory)
    own = template if isinstance(template, kodolly_templates.Template) else None
    async with Cutter(engine.url) as first, Cutter(engine.url) as second:
        rows = [
            WorkerRow(
                name=door.url,
                model_names=[engine.model],
                speed=1,
                queue_length=0,
                state=WorkerState.READY,
                kodolly=Extension(
                    engine_url=door.url,
                    engine_key=engine.key,
                    context_length=1024,
                    stop=list(own.stop) if own else [],
                    forced_ids=True,
                ),
            )
            for door in (first, second)
        ]
        app = create_app(ApiSettings(controller="http://127.0.0.1:1", routing="round_robin"))
        app.state.table.apply(Snapshot(epoch="1", version=1, workers=rows))
        async with serving(app) as url:
            yield url, [first, second]


ASKED_OF_RESUME: dict[str, dict[str, Any]] = {
    "plain": {},
    "stop": {"stop": ["\n\n", "입니다", " of"]},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
}


@pytest.mark.parametrize("fields", ASKED_OF_RESUME.values(), ids=ASKED_OF_RESUME)
async def test_a_cut_stream_goes_on_as_if_nothing_was(
    engine: Engine, fields: dict[str, Any]
) -> None:
    """Greedy text, reason, usage and log probabilities are those of an undisturbed stream.

    Each cut is followed by another one in the continuation.
    """
    async with two_doors(engine) as (url, doors):
        for question in QUESTIONS:
            asked = {
                "model": engine.model,
                "messages": messages(question),
                "temperature": 0,
                "max_tokens": TOKENS,
                "stream_options": {"include_usage": True},
                **fields,
            }
            undisturbed = await story(url, asked)
            for after in (1, 2, 3, 5, 8, 13, 21, 34):
                for door in doors:
                    door.after = after
                told, logprobs = await story(url, asked)
                assert told == undisturbed[0], after
                # Sums in another order differ in the last bits.
                assert logprobs == pytest.approx(undisturbed[1], abs=0.02), after
        assert sum(door.cuts for door in doors) > len(QUESTIONS) * 8


CITY = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "days": {"type": "integer"}},
    "required": ["name", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}
REPLAYED: dict[str, dict[str, Any]] = {
    "schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}}
    },
    "tool": {"tools": [TOOL], "tool_choice": "required"},
    "regex, twice": {"structured_outputs": {"regex": "[a-z가-힣]{30,60}"}, "n": 2, "seed": 5},
}


@pytest.mark.parametrize("fields", REPLAYED.values(), ids=REPLAYED)
async def test_a_cut_answer_under_a_grammar_is_replayed(
    stack: Stack, fields: dict[str, Any]
) -> None:
    """Sampled calls and constrained texts that are cut are one engine's answer: of whole tokens.

    The text of all token ids together is the text that was sent, and what has ended is whole JSON.
    """
    engine = stack.engines["llama"]
    asked = {
        "model": "llama",
        "messages": messages(QUESTIONS[1]),
        "temperature": 1.0,
        "max_tokens": TOKENS,
        "return_token_ids": True,
        **fields,
    }
    async with two_doors(engine) as (url, doors):
        for number, after in enumerate((2, 5, 9, 14, 20, 24)):
            doors[0].after, doors[1].after = (after, None) if number // 2 % 2 else (None, after)
            for choice in await parts(url, asked):
                text = choice["content"] + choice["arguments"]
                made = await detokenized(engine, choice["ids"])
                assert text.strip() in made
                assert choice["reasons"] in (["stop"], ["length"], ["tool_calls"])
                if choice["reasons"] != ["length"] and "structured_outputs" not in fields:
                    assert json.loads(text).keys() == {"name", "days"}
    assert sum(door.cuts for door in doors) >= 2


async def parts(url: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """By choice: all of its content, its call's arguments, its token ids and its reasons to end."""
    told: dict[int, dict[str, Any]] = {}
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=300
    ) as client:
        known = {
            k: v for k, v in asked.items() if k not in ("return_token_ids", "structured_outputs")
        }
        more = {k: v for k, v in asked.items() if k not in known}
        stream = await client.chat.completions.create(**known, stream=True, extra_body=more)
        async for chunk in stream:
            for choice in chunk.choices:
                empty = {"content": "", "arguments": "", "ids": [], "reasons": []}
                said = told.setdefault(choice.index, empty)
                said["content"] += choice.delta.content or ""
                for call in choice.delta.tool_calls or ():
                    said["arguments"] += (call.function and call.function.arguments) or ""
                said["ids"] += (choice.model_extra or {}).get("token_ids") or []
                said["reasons"] += [choice.finish_reason] if choice.finish_reason else []
    return list(told.values())


async def detokenized(engine: Engine, ids: list[int]) -> str:
    """The text of token ids, by the engine itself."""
    body = {"model": engine.model, "tokens": ids}
    headers = {"Authorization": f"Bearer {engine.key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{engine.url}/detokenize", json=body) as answer,
    ):
        return str((await answer.json())["prompt"])


async def test_the_worker_says_that_it_takes_forced_ids(stack: Stack) -> None:
    """What a worker registers is true of its engine: it begins with the very tokens it is given."""
    engine = stack.engines["llama"]
    body = {
        "model": "llama",
        "prompt": "A",
        "max_tokens": 5,
        "return_token_ids": True,
        "vllm_xargs": {"kd_ids": [100, 200, 300]},
    }
    headers = {"Authorization": f"Bearer {engine.key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{engine.url}/v1/completions", json=body) as answer,
    ):
        assert (await answer.json())["choices"][0]["token_ids"][:3] == [100, 200, 300]


async def story(url: str, asked: dict[str, Any]) -> tuple[list[Any], list[float]]:
    """What a stream says: text, tokens with log probabilities, reasons, usage; and those numbers."""
    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="any", max_retries=0, timeout=300
    ) as client:
        chunks = [c async for c in await client.chat.completions.create(**asked, stream=True)]
    choices = [choice for chunk in chunks for choice in chunk.choices]
    entries = [e for c in choices if c.logprobs for e in c.logprobs.content or ()]
    text = "".join(choice.delta.content or "" for choice in choices)
    reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
    usage = chunks[-1].usage
    assert usage is not None
    counts = (usage.prompt_tokens, usage.completion_tokens)
    tokens = [entry.token for entry in entries]
    return [text, tokens, reasons, counts], [entry.logprob for entry in entries]


def test_killed_agent_leaves_no_engine(stack: Stack) -> None:
    """SIGKILL of a worker agent ends every process of its vLLM, and the other model answers on."""
    victim = stack.engines["neox"]
    family = victim.processes
    assert len(family) >= 3
    os.kill(victim.worker.pid, 9)
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []
    with stack.client() as client:
        answer = client.chat.completions.create(
            model="llama", messages=messages(QUESTIONS[1]), max_tokens=8, temperature=0
        )
    assert answer.choices[0].message.content
