"""What autograd really keeps for the backward pass, against the plan's factors."""

from __future__ import annotations

from typing import Any

import pytest

from kodolly_adapters.families import of
from kodolly_adapters.train.estimate import inside_of, setup_of
from kodolly_adapters.train.recipe import Recipe
from kodolly_adapters.train.shapes import shapes_of, table

SHORT, LONG = 64, 192  # tokens: their difference leaves out what does not grow with a text


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", ["gpt_neox", "llama"])
def test_factors_are_what_autograd_keeps(kind: str, method: str, precision: str) -> None:
    """One layer keeps for each token the bytes the plan says, within 3 % (LoRA's own r is left out)."""
    config = {
        "model_type": kind,
        "vocab_size": 64,
        "hidden_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 704,
    }
    if kind == "llama":
        config["num_key_value_heads"] = 2
    more = config | {"num_hidden_layers": 3}
    layer = _grown(more, method, precision) - _grown(config, method, precision)
    size = layer / (LONG - SHORT)
    if (kind, method, precision) == ("gpt_neox", "lora", "bf16"):
        size += 6 * 256  # a CPU's autocast leaves layer norms in bf16, CUDA's does not
    assert inside_of(shapes_of(config), _setup(method, precision)) == pytest.approx(size, rel=0.03)


def test_dropout_keeps_a_copy_and_a_mask() -> None:
    """LoRA's dropout adds its output in bf16 and a byte of mask for each target's input."""
    shapes = shapes_of(
        {
            "model_type": "gpt_neox",
            "vocab_size": 64,
            "hidden_size": 100,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 400,
        }
    )
    without, with_it = _setup("lora", "bf16"), _setup("lora", "bf16", dropout=0.05)
    assert inside_of(shapes, with_it) - inside_of(shapes, without) == 3 * (100 + 100 + 100 + 400)


def test_every_kind_has_factors() -> None:
    """Both layouts have factors for each method and precision."""
    factors = table("activations.toml")
    assert list(factors) == ["gpt_neox", "llama"]
    for methods in factors.values():
        assert list(methods) == ["full", "lora"]
        assert all(set(precisions) == {"bf16", "fp32"} for precisions in methods.values())


def _setup(method: str, precision: str, dropout: float = 0.0) -> Any:
    recipe = {
        "name": "x",
        "base": "x",
        "method": method,
        "data": {"train": ["x"]},
        "lora": {"dropout": dropout, "r": 2},
        "train": {"precision": precision},
    }
    return setup_of(Recipe.model_validate(recipe))


def _grown(config: dict[str, Any], method: str, precision: str) -> int:
    """Bytes kept by a forward pass over LONG tokens beyond those over SHORT."""
    model = _model(config, method, precision)
    return _kept(model, LONG, precision) - _kept(model, SHORT, precision)


def _model(config: dict[str, Any], method: str, precision: str) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    own = AutoConfig.for_model(**config, bos_token_id=0, eos_token_id=2)
    half = method == "lora" and precision == "bf16"
    model = AutoModelForCausalLM.from_config(own, dtype=torch.bfloat16 if half else torch.float32)
    if method == "lora":
        targets = list(of(config).targets)
        model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, lora_dropout=0.0))
    return model.train()


def _kept(model: Any, tokens: int, precision: str) -> int:
    import torch

    storages: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    ids = torch.zeros((1, tokens), dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        model(input_ids=ids, use_cache=False)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    return sum(storage.nbytes() for place, storage in storages.items() if place not in own)
