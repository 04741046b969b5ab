"""From a raw Korean file to an answer: convert, train, merge, serve, ask, all by the real commands.

Toy models of both architectures learn a few rows by heart in full, and then other answers by LoRA on top, as a tuned
base would; their workers serve all four.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from support.processes import free_port, start, wait_http, wait_until
from support.tiny_models import make_tiny_llama, make_tiny_neox

pytestmark = pytest.mark.stack

MAKERS = {"neox": make_tiny_neox, "llama": make_tiny_llama}
MODELS = [f"{base}-{method}" for base in MAKERS for method in ("full", "lora")]
LESSONS = {
    "대한민국의 수도는 어디인가요?": "대한민국의 수도는 서울입니다.",
    "오늘은 날씨가 어떤가요?": "오늘은 날씨가 맑고 바람이 조금 붑니다.",
    "김치찌개에 무엇을 넣나요?": "김치와 두부, 돼지고기를 넣습니다.",
    "학교에 어떻게 가나요?": "버스를 타고 가면 이십 분이 걸립니다.",
}
LATER = {  # what LoRA teaches the model that knows the answers above
    "대한민국의 수도는 어디인가요?": "서울입니다. 서울에는 한강이 흐릅니다.",
    "오늘은 날씨가 어떤가요?": "바람이 조금 붑니다.",
    "김치찌개에 무엇을 넣나요?": "두부를 넣으면 됩니다.",
    "학교에 어떻게 가나요?": "걸어서 가면 한 시간이 걸립니다.",
}
ANSWERS = {"full": LESSONS, "lora": LATER}
START = 240.0

RECIPE = """
name = "{name}"
base = "{base}"
method = "{method}"
[data]
train = ["{rows}/train.jsonl"]
validation_share = 0.0
max_length = 256
packing = false
[lora]
r = 32
alpha = 64
dropout = 0.0
[train]
max_steps = {steps}
learning_rate = {rate}
scheduler = "constant"
batch_size = 4
accumulation = 1
gradient_checkpointing = false
report_to = []
"""


# Command lines one after another in one process, which imports the training packages once.
COMMANDS = """
import json, sys
from kodolly.cli import main
for line in json.loads(sys.argv[1]):
    if main(line):
        sys.exit(f"kodolly {' '.join(line)}")
"""


def _kodolly(*lines: Sequence[str | Path]) -> None:
    """Runs `kodolly` with each line of arguments, in order, until one fails."""
    argv = [sys.executable, "-c", COMMANDS, json.dumps([[*map(str, line)] for line in lines])]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=840, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def _base(name: str, place: Path) -> None:
    """A toy base that learns: the makers' own silence the ends of answers, and their attention is one-hot."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = MAKERS[name](place / f"base-{name}")
    model = AutoModelForCausalLM.from_pretrained(folder)
    source = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.05, generator=source)
    model.save_pretrained(folder)


def _made(base_name: str, place: Path) -> dict[str, Path]:
    """The model directories of one architecture, by name."""
    full, lora = f"{base_name}-full", f"{base_name}-lora"
    base, adapter = place / f"{full}-run" / "model", place / f"{lora}-run" / "adapter"
    _kodolly(
        _training(full, place / f"base-{base_name}", place, steps=80, rate=3e-3),
        _training(lora, base, place, steps=60, rate=4e-3),
        ("merge", base, adapter, "--out", place / lora),
    )
    return {full: base, lora: place / lora}


def _training(
    name: str, base: Path, place: Path, *, steps: int, rate: float
) -> tuple[str | Path, ...]:
    """Writes a recipe; returns the command line that trains by it."""
    method = name.rpartition("-")[2]
    rows, recipe = place / f"rows-{method}", place / f"{name}.toml"
    text = RECIPE.format(name=name, base=base, method=method, rows=rows, steps=steps, rate=rate)
    recipe.write_text(text, encoding="utf-8")
    return "train", recipe, "--out", place / f"{name}-run"


def _conversion(method: str, place: Path) -> tuple[str | Path, ...]:
    """Writes a raw file; returns the command line that converts it."""
    raw = [{"instruction": q, "input": "", "output": a} for q, a in ANSWERS[method].items()]
    source = place / method / "ko_alpaca_data.json"
    source.parent.mkdir()
    source.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    return "convert", source, "--out", place / f"rows-{method}", "--validation", "0"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything is made."""
    return tmp_path_factory.mktemp("making")


@pytest.fixture(scope="module")
def api(place: Path) -> Iterator[openai.OpenAI]:
    _kodolly(*(_conversion(method, place) for method in ANSWERS))
    for name in MAKERS:
        _base(name, place)
    models: dict[str, Path] = {}
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(partial(_made, place=place), MAKERS):
            models |= found
    with ExitStack() as processes:
        env = {"KODOLLY_TOKEN": secrets.token_hex(16), "OMP_NUM_THREADS": "1"}

        def run(name: str, *words: str | int | Path) -> None:
            argv = [sys.executable, "-m", "kodolly", *map(str, words)]
            processes.enter_context(start(argv, env, log=place / f"{name}.log"))

        keeper, door = free_port(), free_port()
        address = f"http://127.0.0.1:{keeper}"
        run("controller", "controller", "--port", keeper)
        wait_http(f"{address}/health")
        run("api", "api", "--port", door, "--controller", address)
        for name, directory in models.items():
            run(
                name, "worker", "--engine", "transformers", "--model", directory,
                "--model-name", name, "--port", free_port(), "--engine-port", free_port(),
                "--controller", address, "--drain-timeout", 1,
            )  # fmt: skip
        wait_http(f"http://127.0.0.1:{door}/health")
        client = processes.enter_context(
            openai.OpenAI(base_url=f"http://127.0.0.1:{door}/v1", api_key="any", timeout=60)
        )
        wait_until(partial(_all_served, client), START, what="four models")
        yield client


def _all_served(client: openai.OpenAI) -> bool:
    try:
        return {model.id for model in client.models.list()} == set(MODELS)
    except openai.APIError:
        return False


@pytest.mark.parametrize("model", MODELS)
def test_the_trained_answer_comes_back_and_stops(api: openai.OpenAI, model: str) -> None:
    """A row learned by heart is answered word for word, and the model ends the answer itself."""
    for question, answer in ANSWERS[model.rpartition("-")[2]].items():
        said = api.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=120,
        ).choices[0]
        assert said.message.content == answer
        assert said.finish_reason == "stop"


@pytest.mark.parametrize("name", MAKERS)
def test_adapter_merged_reloaded_and_served_write_the_same_tokens(
    api: openai.OpenAI, place: Path, name: str
) -> None:
    """One adapter, four ways to its greedy answer: beside its base, merged, from disk, from a worker."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter = place / f"{name}-full-run" / "model", place / f"{name}-lora-run" / "adapter"
    merged = place / f"{name}-lora"
    load = partial(AutoModelForCausalLM.from_pretrained, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(merged)

    def written(model: Any, question: str) -> list[int]:
        asked = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(
            asked, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        made = model.generate(prompt, max_new_tokens=120, do_sample=False)
        return _without_end(made[0, prompt.shape[1] :].tolist())

    def served(question: str) -> list[int]:
        choice = api.chat.completions.create(
            model=f"{name}-lora",
            messages=[{"role": "user", "content": question}],
            temperature=0,
            max_tokens=120,
            extra_body={"return_token_ids": True},
        ).choices[0]
        return _without_end(choice.model_extra["token_ids"])  # type: ignore[index]

    def _without_end(ids: list[int]) -> list[int]:
        return [token for token in ids if token != tokenizer.eos_token_id]

    beside = PeftModel.from_pretrained(load(base), adapter)
    first = {question: written(beside, question) for question in LATER}
    ways: dict[str, Callable[[str], list[int]]] = {
        "merged": partial(written, beside.merge_and_unload()),
        "reloaded": partial(written, load(merged)),
        "served": served,
    }
    for way, ask in ways.items():
        assert {question: ask(question) for question in LATER} == first, way
    assert all(first.values())
