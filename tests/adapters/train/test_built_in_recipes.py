"""The recipes that come with KoDolly: they load, fit their family, and are planned on every GPU."""

from __future__ import annotations

from typing import Any

import pytest

from kodolly_adapters.families import of, on_meta
from kodolly_adapters.train.plan import plan
from kodolly_adapters.train.recipe import built_in, load
from kodolly_adapters.train.shapes import table

STUDY = [
    "koalpaca-polyglot-12.8b-lora",
    "koalpaca-polyglot-5.8b-lora",
    "llama-13b-lora",
    "open-llama-13b-lora",
    "polyglot-ko-1.3b-full",
    "polyglot-ko-12.8b-lora",
    "polyglot-ko-3.8b-lora",
    "polyglot-ko-5.8b-lora",
]
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 160,
}


def test_the_study_is_complete() -> None:
    """Every row of the study's table is a built-in recipe with its base in the table of configs."""
    names = [name for name in built_in() if load(name).study]
    assert names == STUDY
    assert sorted({load(name).base for name in STUDY}) == sorted(table("bases.toml"))


@pytest.mark.parametrize("name", built_in())
def test_built_in_recipe_loads_under_its_name(name: str) -> None:
    """A built-in recipe is called as its file is, says why it is as it is, and loses no row to 512 tokens."""
    recipe = load(name)
    assert recipe.name == name
    assert recipe.notes
    assert recipe.data.packing
    assert recipe.data.max_length == (2048 if name in STUDY else 256)


@pytest.mark.parametrize("name", STUDY)
def test_targets_are_all_linear_layers_of_the_architecture(name: str) -> None:
    """Each target is a linear layer of a shrunken copy of the base, and none but the head is left out."""
    import torch

    recipe = load(name)
    config: dict[str, Any] = table("bases.toml")[recipe.base]["config"] | SMALL
    model = on_meta(config)
    head = model.get_output_embeddings()
    linear = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    assert set(of(config).targets) == linear
    if recipe.method == "lora":
        assert set(recipe.lora.targets) == linear
        assert len(recipe.lora.targets) == len(linear)
    else:
        assert recipe.method == "full"


@pytest.mark.parametrize("name", STUDY)
def test_study_recipes_run_on_every_gpu_of_80_gb(name: str) -> None:
    """As written, each recipe fits 1, 4 and 8 A100s and H100s of 80 GB, by plain data parallelism."""
    recipe = load(name)
    for machine in plan(recipe)["machines"]:
        setup = machine["setup"]
        assert setup["batch"] == recipe.train.batch_size
        assert setup["method"] == recipe.method
        assert setup["strategy"] == ("none" if machine["gpus"] == 1 else "ddp")
