"""Every built-in recipe through the real commands, the study's eight on shrunken copies of their bases.

A copy has its base's config but for the sizes, its number type, its padded vocabulary, and its upload's
faults: decapoda's LLaMA names no end token and a tokenizer class that does not exist.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.merge_cases import verdict
from support.tuning_rows import dolly, tokenizer, write_lines

from kodolly_adapters.train.recipe import built_in, load
from kodolly_adapters.train.shapes import table

pytestmark = pytest.mark.usefixtures("no_curve")

# The recipes for a CPU are tried on a base of the same architecture, too.
STAND_INS = {
    "kodolly-ko-8m": "EleutherAI/polyglot-ko-1.3b",
    ".kodolly/models/tiny-llama": "openlm-research/open_llama_13b",
}
QUICK = (
    "tiny-neox-lora",
    "tiny-llama-full",
)  # one of each architecture; `make test-stack` runs all
LAYERS = 2
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
}
SETTINGS = {
    "data.validation": "[]",
    "data.validation_share": "0.2",
    "data.max_length": "256",
    "train.max_steps": "2",
    "train.eval_steps": "2",
    "train.batch_size": "2",
    "train.accumulation": "1",
    "train.report_to": "[]",
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Forty Dolly rows, one in four with a context."""
    made = [
        dolly(f"{n}번 질문: 서울은 어디에 있나요?", f"{n}번 답: 한강이 흐르는 곳입니다.", "서울 이야기" * (n % 4 == 0))
        for n in range(40)
    ]  # fmt: skip
    return write_lines(tmp_path_factory.mktemp("rows") / "train.jsonl", made)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.stack) for name in built_in()],
)
def test_recipe_trains_and_merges(name: str, rows: str, tmp_path: Path) -> None:
    """Two steps of the recipe change exactly its targets, and the merged model loads, whole and able to stop."""
    recipe = load(name)
    base = _shrunken(STAND_INS.get(recipe.base, recipe.base), tmp_path / "base")
    run, merged = tmp_path / "run", tmp_path / "merged"
    _train(name, base, rows, run)
    if recipe.method == "full":
        model = run / "model"
    else:
        adapter = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
        assert set(adapter["target_modules"]) == set(recipe.lora.targets)
        assert (adapter["r"], adapter["lora_alpha"]) == (recipe.lora.r, recipe.lora.alpha)
        _merge(base, run / "adapter", merged)
        model = merged
    before, after = _weights(base), _weights(model)
    assert after.keys() == before.keys()
    assert {key: value.shape for key, value in after.items()} == {
        key: value.shape for key, value in before.items()
    }
    changed = {key for key in before if not before[key].equal(after[key].to(before[key].dtype))}
    if recipe.method == "full":
        assert any("embed_" in key for key in changed)
    else:
        assert changed == {
            key for key in before if key.removesuffix(".weight").endswith(tuple(_dotted(recipe)))
        }
        assert len(changed) == LAYERS * len(recipe.lora.targets)
    _stops(model)


def _dotted(recipe: Any) -> list[str]:
    return [f".{target}" for target in recipe.lora.targets]


def _train(name: str, base: Path, rows: str, run: Path) -> None:
    from kodolly_adapters.train.cli import main

    values = SETTINGS | {"base": str(base), "data.train": f'["{rows}"]'}
    if load(name).method == "full":
        values["train.learning_rate"] = "1e-3"  # two steps of 2e-5 are lost in fp16
    flags = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    assert main([name, *flags, "--quiet", "--out", str(run)]) == 0
    assert (run / "run.json").stat().st_size > 0
    assert (run / "metrics.jsonl").stat().st_size > 0


def _merge(base: Path, adapter: Path, merged: Path) -> None:
    """Merge by the command, and check as it does, but in this process: its own would load torch anew."""
    from kodolly_adapters.merge.cli import main

    words = [str(base), str(adapter), "--out", str(merged), "--quiet", "--no-verify"]
    assert main(words) == 0
    comparison = verdict(base, adapter, merged)
    assert comparison.tensors > 0
    assert comparison.tokens > 0


def _shrunken(name: str, directory: Path) -> Path:
    """A base of the same architecture with random weights, its tokenizer and its upload's faults."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: dict[str, Any] = table("bases.toml")[name]["config"] | SMALL
    words = tokenizer("llama" if config["model_type"] == "llama" else "neox")
    config["vocab_size"] = -(-len(words) // 64) * 64 + 64  # padded, as Polyglot's is
    config |= {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = AutoConfig.for_model(**config)
        model = AutoModelForCausalLM.from_config(own, dtype=torch.float16)
    model.save_pretrained(str(directory))
    words.save_pretrained(str(directory))
    if name.startswith("decapoda-research"):
        _spoil(directory)
    return directory


def _spoil(directory: Path) -> None:
    """decapoda's config and tokenizer_config, as they were uploaded."""
    _change(directory / "config.json", bos_token_id=0, eos_token_id=1, pad_token_id=-1)
    _change(
        directory / "tokenizer_config.json",
        tokenizer_class="LLaMATokenizer",
        bos_token="",
        eos_token="",
        unk_token="",
    )


def _change(path: Path, **values: Any) -> None:
    known = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(known | values), encoding="utf-8")


def _weights(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def _stops(directory: Path) -> None:
    """The model loads without a complaint, and its generation ends at the tokenizer's own end."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    words = AutoTokenizer.from_pretrained(directory)
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    assert words.eos_token
    assert words.convert_tokens_to_ids(words.eos_token) in ends
