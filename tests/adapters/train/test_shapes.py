"""Parameters counted from shapes: against published numbers, transformers and PEFT."""

from __future__ import annotations

from typing import Any

import pytest

from kodolly_adapters.errors import BaseError, RecipeError
from kodolly_adapters.families import look, of, on_meta
from kodolly_adapters.train.estimate import trainable
from kodolly_adapters.train.shapes import shapes_of, table

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 160,
    "vocab_size": 320,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "neox": SMALL | {"model_type": "gpt_neox"},
    "neox-no-bias": SMALL | {"model_type": "gpt_neox", "attention_bias": False},
    "neox-tied": SMALL | {"model_type": "gpt_neox", "tie_word_embeddings": True},
    "llama": SMALL | {"model_type": "llama"},
    "llama-grouped": SMALL
    | {"model_type": "llama", "num_key_value_heads": 2, "attention_bias": True},
    "llama-tied": SMALL | {"model_type": "llama", "mlp_bias": True, "tie_word_embeddings": True},
    "llama-wide-heads": SMALL | {"model_type": "llama", "head_dim": 32, "num_key_value_heads": 1},
    "qwen2": SMALL | {"model_type": "qwen2", "num_key_value_heads": 2},
    "mistral": SMALL | {"model_type": "mistral", "num_key_value_heads": 2},
    "gemma3": SMALL | {"model_type": "gemma3_text", "num_key_value_heads": 2},
    "phi": SMALL | {"model_type": "phi"},
}


@pytest.mark.parametrize(
    ("base", "parameters"),
    [
        ("EleutherAI/polyglot-ko-1.3b", 1_331_810_304),
        ("EleutherAI/polyglot-ko-3.8b", 3_809_974_272),
        ("EleutherAI/polyglot-ko-5.8b", 5_885_059_072),
        ("EleutherAI/polyglot-ko-12.8b", 12_893_603_840),
        ("openlm-research/open_llama_13b", 13_015_864_320),
    ],
)
def test_published_sizes(base: str, parameters: int) -> None:
    """The built-in configs have exactly the parameters their models are published with."""
    assert shapes_of(table("bases.toml")[base]["config"]).parameters == parameters


def test_tuned_polyglots_keep_their_shapes() -> None:
    """KoAlpaca's models are planned with the shapes of the Polyglots they were tuned from."""
    bases = table("bases.toml")
    for size in ("5.8", "12.8"):
        tuned = bases[f"beomi/KoAlpaca-Polyglot-{size}B"]
        assert tuned == bases[f"EleutherAI/polyglot-ko-{size}b"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_counts_are_those_of_the_built_model(config: dict[str, Any]) -> None:
    """Total, embedding and linear counts equal those of the model that transformers builds."""
    import torch

    model = on_meta(config)
    shapes = shapes_of(config)
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    assert shapes.parameters == sum(p.numel() for p in model.parameters())
    assert shapes.linear == sum(p.numel() for m in linear for p in m.parameters())
    assert shapes.embedding == model.get_input_embeddings().weight.numel()
    assert shapes.tied == bool(model.config.tie_word_embeddings)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_families_name_what_the_model_has(config: dict[str, Any]) -> None:
    """The family of a config is what looking at the built model finds, known by name or not."""
    model = on_meta(config)
    family = of(config)
    assert family == look(model, config["model_type"])
    assert model.get_submodule(family.embeddings[0]) is model.get_input_embeddings()
    assert model.get_submodule(family.embeddings[1]) is model.get_output_embeddings()
    layers = model.get_submodule(family.layer_pattern)
    assert len(layers) == SMALL["num_hidden_layers"]
    assert type(layers[0]).__name__ == family.layer_class
    assert of(model.config) == family


@pytest.mark.parametrize("kind", ["gpt_neox", "llama"])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapter_counts_are_pefts(kind: str, dora: bool, tokens: int) -> None:
    """Trainable parameters equal PEFT's, with DoRA and trained token rows too."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = SMALL | {"model_type": kind}
    family = of(config)
    rows = {name.rpartition(".")[2]: [7, 8, 9] for name in family.embeddings}
    own = AutoConfig.for_model(kind, **{k: v for k, v in config.items() if k != "model_type"})
    model = get_peft_model(
        AutoModelForCausalLM.from_config(own),
        LoraConfig(
            r=4,
            target_modules=list(family.targets),
            use_dora=dora,
            trainable_token_indices=rows if tokens else None,
            task_type="CAUSAL_LM",
        ),
    )
    setup = {"method": "lora", "targets": [], "r": 4, "dora": dora, "new_tokens": tokens}
    count = trainable(shapes_of(config), setup)
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_unknown_target_is_named() -> None:
    """A target that the family has not is refused with those it has."""
    with pytest.raises(RecipeError, match=r"no linear layer q_proj; it has query_key_value, dense"):
        shapes_of(CONFIGS["neox"]).select(["q_proj"])


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "names no model_type"),
        ({"model_type": "gpt_neox", "hidden_size": 64}, "does not say intermediate_size"),
        ({"model_type": "never-heard-of"}, "cannot build a never-heard-of decoder"),
        ({"model_type": "t5"}, "cannot build a t5 decoder"),
        ({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 2}, "no linear layers"),
    ],
    ids=["nameless", "cut-short", "unknown", "encoder", "no-linear"],
)
def test_unusable_configs(config: dict[str, Any], text: str) -> None:
    """A config that no plan can be made from says what is wrong with it."""
    with pytest.raises(BaseError, match=text):
        shapes_of(config)
