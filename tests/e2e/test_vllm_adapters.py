"""Real CPU vLLM with two LoRA adapters beside its base, and the same adapters merged and served.

`make test-vllm`. Two vLLM start, a GPT-NeoX and a LLaMA; the four merged models are served by the
transformers engine behind the same API, so that two engines and two ways of adding must agree.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psutil  # type: ignore[import-untyped]
import pytest
from support.processes import Process, free_port, start, wait_http, wait_until
from support.tiny_models import make_tiny_llama, make_tiny_neox

ROOT = Path(__file__).parents[2]
ENGINE_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
START = 900.0  # seconds for all engines on a machine that has other work
TOKENS = 40
ADAPTERS = ("first", "second")
# rank and alpha of each: two ranks that are none of vLLM's own, one of them scaled as rsLoRA
RANKS = {"first": (5, 10), "second": (12, 6)}
MAKERS = {"neox": make_tiny_neox, "llama": make_tiny_llama}
LAYERS = {
    "neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
QUESTIONS = (
    "대한민국의 수도는 어디인가요? 한 문장으로 답해 주세요. 🙂",
    "### 응답: 을 따라 하지 말고 김치찌개 끓이는 법을 알려 주세요.",
    "What is the capital of Korea?",
)
PAIRS = [(kind, adapter) for kind in MAKERS for adapter in ADAPTERS]

pytestmark = [
    pytest.mark.vllm,
    # PEFT 0.21 still asks transformers by the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.skipif(
        not ENGINE_PYTHON.exists(), reason="no .venv-vllm here: `make vllm-env` makes it"
    ),
]


@dataclass(frozen=True)
class Stack:
    """Controller, API and workers by name; of the vLLM workers their own URL and their engine's."""

    api: str
    token: str
    workers: dict[str, Process]
    agents: dict[str, str]
    engines: dict[str, str]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.api}/v1", api_key="any", max_retries=0, timeout=300)


def make_adapters(base: Path, kind: str, root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Directories of the base's adapters, and of the base with each of them merged by PEFT."""
    import json

    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapters, merged = {}, {}
    for seed, (name, (rank, alpha)) in enumerate(RANKS.items(), 1):
        torch.manual_seed(seed)
        network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=LAYERS[kind],
            use_rslora=name == "second",
            task_type="CAUSAL_LM",
        )
        tuned = get_peft_model(network, config)
        for parameter, weight in tuned.named_parameters():
            if "lora_B" in parameter:
                torch.nn.init.normal_(weight, std=0.2)
        adapters[name] = root / f"{kind}-{name}"
        tuned.save_pretrained(str(adapters[name]))
        card = {"name": f"{kind}-{name}-merged", "template": "dolly-ko"}
        merged[name] = root / str(card["name"])
        tuned.merge_and_unload().save_pretrained(merged[name])
        AutoTokenizer.from_pretrained(base).save_pretrained(merged[name])
        for directory in (adapters[name], merged[name]):
            (directory / "model_card.json").write_text(json.dumps(card), encoding="utf-8")
    return adapters, merged


def make_base(kind: str, root: Path) -> Path:
    """A base model as most are: without a chat template, known by no card."""
    base = MAKERS[kind](root / kind)
    (base / "model_card.json").unlink()
    for file in base.glob("chat_template*"):
        file.unlink()
    return base


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root, logs = tmp_path_factory.mktemp("m"), tmp_path_factory.mktemp("logs")
    controller, api = free_port(), free_port()
    address = f"http://127.0.0.1:{controller}"
    token = secrets.token_hex(16)
    env = {"KODOLLY_TOKEN": token, "OMP_NUM_THREADS": "1"}

    with ExitStack() as processes:

        def kodolly(name: str, command: str, *args: object) -> Process:
            argv = [sys.executable, "-m", "kodolly", command, *map(str, args)]
            return processes.enter_context(start(argv, env, cwd=ROOT, log=logs / f"{name}.log"))

        def worker(name: str, engine: str, model: Path, *args: str | int | Path) -> Process:
            given: list[str | int | float | Path] = ["--engine", engine, "--model", model, *args]
            given += ["--controller", address, "--start-timeout", START]
            given += ["--dtype", "float32", "--max-model-len", 1024, "--drain-timeout", 1]
            return kodolly(name, "worker", *given)

        keeper = kodolly("controller", "controller", "--port", controller)
        wait_http(f"{address}/health", process=keeper)
        door = kodolly("api", "api", "--port", api, "--controller", address)
        workers, agents, engines, names = {}, {}, {}, []
        for kind in MAKERS:
            base = make_base(kind, root)
            adapters, merged = make_adapters(base, kind, root)
            named = [f"{kind}-{name}={path}" for name, path in adapters.items()]
            flags = [word for text in named for word in ("--adapters", text)]
            flags += ["--engine-python", str(ENGINE_PYTHON), "--max-num-seqs", "8"]
            own, port = free_port(), free_port()
            agents[kind], engines[kind] = (f"http://127.0.0.1:{p}" for p in (own, port))
            workers[kind] = worker(kind, "vllm", base, *ports(own, port), *flags)
            for path in merged.values():
                two = ports(free_port(), free_port())
                workers[path.name] = worker(path.name, "transformers", path, *two)
            names += [kind, *(f"{kind}-{name}" for name in ADAPTERS)]
            names += [path.name for path in merged.values()]
        wait_http(f"http://127.0.0.1:{api}/health", process=door)
        stack = Stack(f"http://127.0.0.1:{api}", token, workers, agents, engines)
        for name in names:
            runner = workers[name] if name in workers else workers[name.partition("-")[0]]
            wait_until(partial(is_served, stack, name), START, what=f"model {name}", process=runner)
        yield stack


def ports(own: int, engine: int) -> tuple[str | int, ...]:
    return ("--port", own, "--engine-port", engine)


def cards(stack: Stack) -> dict[str, Any]:
    """The models that the API can answer for now, by name."""
    try:
        with stack.client() as client:
            return {model.id: model for model in client.models.list()}
    except openai.APIError:
        return {}


def is_served(stack: Stack, name: str) -> bool:
    return name in cards(stack)


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{stack.api}/v1", api_key="any", max_retries=0, timeout=300
    ) as client:
        yield client


@dataclass(frozen=True)
class Answer:
    """What came back for a question, in tokens and in text."""

    prompt: list[int]
    tokens: list[int]
    text: str | None
    reason: str


async def ask(client: openai.AsyncOpenAI, model: str, question: str) -> Answer:
    """A greedy chat with one model."""
    answer = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=TOKENS,
        extra_body={"return_token_ids": True},
    )
    assert answer.model == model
    choice = answer.choices[0]
    prompt = (answer.model_extra or {})["prompt_token_ids"]
    tokens = (choice.model_extra or {})["token_ids"]
    return Answer(prompt, tokens, choice.message.content, choice.finish_reason)


def test_base_and_adapters_are_listed(stack: Stack) -> None:
    """Every name is a model of its own, and an adapter tells its base."""
    known = cards(stack)
    for kind in MAKERS:
        assert (known[kind].model_extra or {})["parent"] is None
        for adapter in ADAPTERS:
            card = (known[f"{kind}-{adapter}"].model_extra or {}) | {}
            assert card["parent"] == kind
            assert card["max_model_len"] == 1024


@pytest.mark.parametrize(("kind", "adapter"), PAIRS)
async def test_runtime_and_merged_answers_agree(
    client: openai.AsyncOpenAI, kind: str, adapter: str
) -> None:
    """An adapter beside its base answers token for token as the same adapter merged into it."""
    for question in QUESTIONS:
        beside = await ask(client, f"{kind}-{adapter}", question)
        merged = await ask(client, f"{kind}-{adapter}-merged", question)
        assert len(beside.tokens) > 1
        assert beside == merged


@pytest.mark.parametrize("kind", MAKERS)
async def test_names_asked_at_once_are_kept_apart(client: openai.AsyncOpenAI, kind: str) -> None:
    """Base and both adapters in one batch give three answers, each the one it gives alone."""
    names = [kind, *(f"{kind}-{adapter}" for adapter in ADAPTERS)]
    together = await asyncio.gather(*(ask(client, name, QUESTIONS[0]) for name in names))
    alone = [await ask(client, name, QUESTIONS[0]) for name in names]

    assert together == alone
    assert len({tuple(answer.tokens) for answer in together}) == len(names)
    assert len({tuple(answer.prompt) for answer in together}) == 1


@pytest.mark.parametrize("kind", MAKERS)
async def test_fastchats_call_reaches_the_adapter_it_names(stack: Stack, kind: str) -> None:
    """What a stock FastChat API server sends to the worker is answered by the model named in it."""
    asked = {"prompt": "오늘은 날씨가", "temperature": 0, "max_new_tokens": TOKENS, "echo": False}
    headers = {"Authorization": f"Bearer {stack.token}"}
    texts = []
    async with aiohttp.ClientSession(headers=headers) as session:
        for name in (kind, f"{kind}-first", f"{kind}-second"):
            url, body = f"{stack.agents[kind]}/worker_generate", asked | {"model": name}
            async with session.post(url, json=body) as answer:
                frame = await answer.json(content_type=None)
            assert frame["error_code"] == 0
            texts.append(frame["text"])
    assert len(set(texts)) == 3


def test_an_unknown_adapter_is_not_found(stack: Stack) -> None:
    """A name that no adapter has is a 404 that lists the names there are."""
    with stack.client() as client, pytest.raises(openai.NotFoundError, match="neox-second"):
        client.chat.completions.create(
            model="neox-third", messages=[{"role": "user", "content": "안녕"}]
        )


@pytest.mark.parametrize("kind", MAKERS)
async def test_nothing_can_be_loaded_at_run_time(stack: Stack, kind: str) -> None:
    """Even with the engine's key nobody can make it load an adapter from a path."""
    worker = psutil.Process(stack.workers[kind].pid)
    keys = {process.environ().get("VLLM_API_KEY") for process in worker.children(recursive=True)}
    headers = {"Authorization": f"Bearer {next(key for key in keys if key)}"}
    body = {"lora_name": "other", "lora_path": "/nowhere"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{stack.engines[kind]}/v1/load_lora_adapter", json=body) as answer,
    ):
        assert answer.status == 404
