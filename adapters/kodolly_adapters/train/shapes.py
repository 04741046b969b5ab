"""A base's config, and from it the shapes of its layers: every parameter is counted, no weight is read."""

from __future__ import annotations

import functools
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from kodolly_adapters.bases import is_hub_id, locate
from kodolly_adapters.card import read_object
from kodolly_adapters.errors import BaseError, RecipeError, first_line
from kodolly_adapters.families import GPT_NEOX, LLAMA, Family, of, on_meta

CONFIG = "config.json"
OFFLINE = (
    " Without a network: put the base's config.json into a folder and give --set base=FOLDER; "
    "training needs its weights and tokenizer there too"
)
TOKENS_PER_CHARACTER = 1.0  # of Korean, for a tokenizer nobody measured; --tokens-per-row is better


@dataclass(frozen=True, slots=True)
class Linear:
    """`count` linear layers of one name, each with a weight of shape (outputs, inputs)."""

    name: str
    outputs: int
    inputs: int
    count: int
    bias: bool


@dataclass(frozen=True, slots=True)
class Shapes:
    """A decoder: its linear layers without the head, its embeddings, and the rest. The properties count parameters."""

    family: Family
    layers: int
    hidden: int
    attention: int  # width of the queries: heads x size of one head
    kv: int  # width of the keys, and of the values
    ffn: int
    vocabulary: int
    linears: tuple[Linear, ...]
    rest: int  # parameters of norms, learned positions and the like
    tied: bool  # the head is the input embedding

    @property
    def matrices(self) -> int:
        """The linear layers' weights."""
        return sum(one.outputs * one.inputs * one.count for one in self.linears)

    @property
    def linear(self) -> int:
        """The linear layers' weights and biases."""
        return self.matrices + sum(one.outputs * one.count for one in self.linears if one.bias)

    @property
    def embedding(self) -> int:
        """The input embedding; the head has as many, or is the same."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of the model's."""
        return self.embedding * (1 if self.tied else 2) + self.linear + self.rest

    def select(self, targets: Sequence[str]) -> list[Linear]:
        """The linear layers of these names, or all for no names. Raises RecipeError for one that is not there."""
        names = list(dict.fromkeys(linear.name for linear in self.linears))
        for target in targets:
            if target not in names:
                raise RecipeError(
                    f"lora.targets: {self.family.name} has no linear layer {target}; "
                    f"it has {', '.join(names)}"
                )
        return [one for one in self.linears if one.name in (targets or self.family.targets)]


@functools.cache
def table(name: str) -> dict[str, dict[str, Any]]:
    """A TOML file beside this module: bases.toml, gpus.toml or activations.toml, whose heads say what they hold."""
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def base_folder(name: str) -> Path | None:
    """The folder of a base; None for a name on the hub. Raises BaseError where there is no such folder, or no config in it."""
    if is_hub_id(name) and not Path(name).is_dir():
        return None
    folder = locate(name).folder
    if not (folder / CONFIG).is_file():
        raise BaseError(f"{folder / CONFIG}: not there; a base's folder holds a config.json")
    return folder


def load_config(name: str, revision: str | None) -> Any:
    """transformers' config of a base, from its folder or the hub. Raises BaseError saying what to do."""
    from transformers import AutoConfig

    hint = "" if base_folder(name) else OFFLINE
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BaseError(f"base {name}: {first_line(error)}{hint}") from None


def find_base(name: str, revision: str | None) -> dict[str, Any]:
    """{"name", "config", "tokens_per_character", "origin" of the config} of a base; no weights, no tokenizer.

    `name` is a folder with a config.json, a built-in name, or one on the hub. Raises BaseError; InputError for a
    config.json that is no JSON object.
    """
    share, origin = TOKENS_PER_CHARACTER, f"its {CONFIG}"
    if folder := base_folder(name):
        config = read_object(folder / CONFIG)
    elif entry := table("bases.toml").get(name):
        config, share, origin = entry["config"], entry["tokens_per_character"], "built-in table"
    else:
        config, origin = load_config(name, revision).to_dict(), "the hub"
    return {"name": name, "config": config, "tokens_per_character": share, "origin": origin}


def shapes_of(config: Mapping[str, Any]) -> Shapes:
    """The shapes that a config.json describes: GPT-NeoX's and LLaMA's without torch. Raises BaseError."""
    family = of(config)
    try:
        return (_by_arithmetic if family in (GPT_NEOX, LLAMA) else _from_model)(config, family)
    except KeyError as error:
        raise BaseError(f"the base's config.json does not say {error.args[0]}") from None


def _by_arithmetic(config: Mapping[str, Any], family: Family) -> Shapes:
    """Without a model. Sizes are (outputs, inputs, bias), in the order of the family's targets."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    layers = config["num_hidden_layers"]
    if family is GPT_NEOX:
        width, kv, norm = hidden, hidden, 2 * hidden  # a norm has a weight and a bias
        bias = bool(config.get("attention_bias", True))
        sizes = [(3 * hidden, hidden, bias), (hidden, hidden, bias)]
        sizes += [(ffn, hidden, True), (hidden, ffn, True)]
    else:
        heads, norm = config["num_attention_heads"], hidden
        size = config.get("head_dim") or hidden // heads
        width, kv = heads * size, (config.get("num_key_value_heads") or heads) * size
        bias, mlp = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
        sizes = [(outputs, hidden, bias) for outputs in (width, kv, kv)]
        sizes += [(hidden, width, bias), (ffn, hidden, mlp), (ffn, hidden, mlp), (hidden, ffn, mlp)]
    linears = tuple(
        Linear(name, outputs, inputs, layers, bias)
        for name, (outputs, inputs, bias) in zip(family.targets, sizes, strict=True)
    )
    tied, rest = bool(config.get("tie_word_embeddings")), (2 * layers + 1) * norm
    return Shapes(family, layers, hidden, width, kv, ffn, config["vocab_size"], linears, rest, tied)


def _from_model(config: Mapping[str, Any], family: Family) -> Shapes:
    """Read off a model on the meta device."""
    import torch

    model = on_meta(config)
    values, head = model.config, model.get_output_embeddings()
    embedding = model.get_input_embeddings().weight
    counts = Counter(
        (name.rpartition(".")[2], *module.weight.shape, module.bias is not None)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    linears = tuple(Linear(n, out, into, count, b) for (n, out, into, b), count in counts.items())
    tied = head.weight is embedding or bool(values.tie_word_embeddings)
    hidden, heads = values.hidden_size, values.num_attention_heads
    size = getattr(values, "head_dim", None) or hidden // heads
    width, kv = heads * size, (getattr(values, "num_key_value_heads", None) or heads) * size
    ffn, layers = max(linear.outputs for linear in linears), values.num_hidden_layers
    shapes = Shapes(family, layers, hidden, width, kv, ffn, len(embedding), linears, 0, tied)
    total = sum(parameter.numel() for parameter in model.parameters())
    return replace(shapes, rest=total - shapes.parameters)
