"""Bases whose files do not agree: refused before the first step, or trained, merged and served with the answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.broken_bases import ADDED, MAKERS, SHAPES, make_broken_base
from support.merge_cases import verdict
from support.tiny_runs import toy
from support.tuning_rows import dolly, write_lines

from kodolly_adapters.errors import RecipeError
from kodolly_adapters.merge.run import merge
from kodolly_adapters.safetensors_io import checkpoint
from kodolly_adapters.train.run import train

pytestmark = [
    pytest.mark.stack,
    pytest.mark.usefixtures("no_curve"),
    pytest.mark.filterwarnings("ignore"),
]

QUESTION, ANSWER = "대한민국의 수도는 어디인가요?", "대한민국의 수도는 서울입니다."
END = "\n\n### 끝"  # a worker cuts it off; the end token comes after it
ENDS = {"added-end": ADDED, "added-end-at-random": ADDED, "early-polyglot": 0}  # ids; else 2
CASES = [(family, shape) for family in MAKERS for shape in SHAPES]
CASES.remove(("neox", "lost-names"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors on shared cores: more threads only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def answer_of(model: Path) -> tuple[str, str]:
    """(answer, finish_reason) of the transformers engine to QUESTION."""
    import httpx

    from kodolly.engines.transformers.engine import Engine
    from kodolly.engines.transformers.model import ModelOptions
    from kodolly.engines.transformers.server import create_app

    async def ask() -> tuple[str, str]:
        engine = Engine(ModelOptions(model, threads=1))
        engine.start(on_failure=lambda: None)
        transport = httpx.ASGITransport(create_app(engine, ["toy"]))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            while not engine.ready and engine.failure is None:
                await asyncio.sleep(0.01)
            assert engine.failure is None, engine.failure
            body = {
                "model": "toy",
                "temperature": 0,
                "max_tokens": 60,
                "messages": [{"role": "user", "content": QUESTION}],
            }
            choice = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
        engine.abort_all()
        return choice["message"]["content"].removesuffix(END), choice["finish_reason"]

    return asyncio.run(ask())


def rows_of(model: Path) -> int:
    """Rows of the input embedding."""
    tensors = checkpoint(model).tensors
    return next(tensor.rows for name, tensor in tensors.items() if "embed" in name)


@pytest.mark.parametrize(("family", "shape"), CASES)
def test_what_train_accepts_is_merged_and_served(family: str, shape: str, tmp_path: Path) -> None:
    """A row learned by heart comes back word for word and ends, at an id that all files of the merged model agree on."""
    from transformers import AutoTokenizer

    base, run, model = tmp_path / "base", tmp_path / "run", tmp_path / "model"
    make_broken_base(shape, family, base)
    rows = write_lines(tmp_path / "rows.jsonl", [dolly(QUESTION, ANSWER)] * 8)
    recipe = toy(
        base, rows, data__validation=[], data__validation_share=0.0, data__packing=False,
        lora__r=32, lora__alpha=64, lora__dropout=0.0, train__max_steps=40, train__save_steps=40,
        train__learning_rate=5e-3, train__scheduler="constant",
    )  # fmt: skip

    train(recipe, run)
    merge(base, run / "adapter", model, check=False, quiet=True)

    assert verdict(base, run / "adapter", model).tokens
    assert answer_of(model) == (ANSWER, "stop")
    assert rows_of(model) >= rows_of(base)
    config, generation = (
        json.loads((model / f"{name}.json").read_text()) for name in ("config", "generation_config")
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert rows_of(model) == config["vocab_size"] > max(tokenizer.get_vocab().values())
    end = ENDS.get(shape, 2)
    assert (tokenizer.eos_token_id, config["eos_token_id"]) == (end, end)
    assert generation["eos_token_id"] == end
    assert generation["bos_token_id"] == config["bos_token_id"] == tokenizer.bos_token_id
    trained = json.loads((run / "adapter/adapter_config.json").read_text())[
        "trainable_token_indices"
    ]
    if shape.startswith("added"):
        assert all(ADDED in ids for ids in trained.values())
    else:
        assert trained is None


@pytest.mark.parametrize(("shape", "token"), [("added-pad", "[PAD]"), ("added-end", "<eos>")])
def test_rows_that_would_stay_untrained_are_refused(shape: str, token: str, tmp_path: Path) -> None:
    """A recipe that does not train them is refused before its first step, naming the token, the base and the key."""
    base = make_broken_base(shape, "llama", tmp_path / "base")
    rows = write_lines(tmp_path / "rows.jsonl", [dolly(QUESTION, ANSWER)])
    recipe = toy(base, rows, lora__train_new_tokens=False)
    with pytest.raises(RecipeError, match=r"lora\.train_new_tokens = false: .*base") as refused:
        train(recipe, tmp_path / "run")
    assert repr(token) in str(refused.value)
    assert not (tmp_path / "run/run.json").exists()
