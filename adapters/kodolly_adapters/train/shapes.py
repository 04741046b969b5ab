"""A base's config, and from it the shapes of its layers: every parameter is counted, no weight is read."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import BaseError, RecipeError, first_line
from kodolly_adapters.families import Family, look, of, on_meta

TOKENS_PER_CHARACTER = 1.0  # of Korean, for a tokenizer nobody measured; --tokens-per-row is better


@dataclass(frozen=True, slots=True)
class Base:
    """A base model as far as an estimate needs it: no weights, no tokenizer."""

    name: str
    config: dict[str, Any]  # as in config.json
    tokens_per_character: float
    origin: str  # where the config comes from


@dataclass(frozen=True, slots=True)
class Linear:
    """`count` linear layers of one name, each with a weight of shape (outputs, inputs)."""

    name: str
    outputs: int
    inputs: int
    count: int
    bias: bool

    @property
    def weights(self) -> int:
        """Elements of the matrices."""
        return self.outputs * self.inputs * self.count

    @property
    def parameters(self) -> int:
        """Elements of the matrices and biases."""
        return self.weights + (self.outputs * self.count if self.bias else 0)


@dataclass(frozen=True, slots=True)
class Shapes:
    """A decoder: its linear layers without the head, its embeddings, and the rest."""

    family: Family
    layers: int
    hidden: int
    attention: int  # width of the queries: heads x size of one head
    kv: int  # width of the keys, and of the values
    ffn: int
    vocabulary: int
    linears: tuple[Linear, ...]
    rest: int  # norms, learned positions and the like
    tied: bool  # the head is the input embedding

    @property
    def embedding(self) -> int:
        """Parameters of the input embedding."""
        return self.vocabulary * self.hidden

    @property
    def head(self) -> int:
        """Parameters of the output embedding; none where it is tied."""
        return 0 if self.tied else self.embedding

    @property
    def linear(self) -> int:
        """Parameters of the linear layers without the head."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        return self.embedding + self.head + self.linear + self.rest

    @property
    def products(self) -> int:
        """Weights that every token is multiplied with: the linear layers and the head."""
        return sum(linear.weights for linear in self.linears) + self.embedding

    def targeted(self, targets: Iterable[str]) -> tuple[Linear, ...]:
        """The linear layers of these names, or all for no names. Raises RecipeError for one that is not there."""
        chosen = tuple(targets) or self.family.targets
        names = [linear.name for linear in self.linears]
        for target in chosen:
            if target not in names:
                raise RecipeError(
                    f"lora.targets: {self.family.name} has no linear layer {target}; "
                    f"it has {', '.join(dict.fromkeys(names))}"
                )
        return tuple(linear for linear in self.linears if linear.name in chosen)

    def adapter(self, targets: Iterable[str], r: int, *, dora: bool, new_tokens: int) -> int:
        """Trainable parameters: A (r, inputs) and B (outputs, r) a layer, DoRA's magnitudes, new rows."""
        matrices = sum(
            linear.count * (r * (linear.inputs + linear.outputs) + (linear.outputs if dora else 0))
            for linear in self.targeted(targets)
        )
        return matrices + new_tokens * self.hidden * (1 if self.tied else 2)


def table() -> dict[str, dict[str, Any]]:
    """The built-in bases (bases.toml): {name: {"config": ..., "tokens_per_character": ...}}."""
    file = resources.files(__package__).joinpath("bases.toml")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def find_base(name: str, revision: str | None = None) -> Base:
    """The base called `name`: a folder with a config.json, a built-in name, or one on the hub. Raises BaseError."""
    if Path(name).is_dir():
        config = _read_config(Path(name) / "config.json")
        return Base(name, config, TOKENS_PER_CHARACTER, "its config.json")
    if (entry := table().get(name)) is not None:
        return Base(name, entry["config"], entry["tokens_per_character"], "built-in table")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise BaseError(f"{name}: no such folder; give one that holds the base's config.json")
    return Base(name, _fetch_config(name, revision), TOKENS_PER_CHARACTER, "the hub")


def shapes_of(config: Mapping[str, Any]) -> Shapes:
    """The shapes that a config.json describes: GPT-NeoX's and LLaMA's without torch. Raises BaseError."""
    family = of(config)
    if family.name not in ("gpt_neox", "llama"):
        return _from_model(config)
    try:
        return _computed(config, family)
    except KeyError as error:
        raise BaseError(f"the base's config.json does not say {error.args[0]}") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BaseError(f"{path}: {error.strerror}; a base's folder holds a config.json") from None
    except ValueError as error:
        raise BaseError(f"{path}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise BaseError(f"{path}: not a JSON object")
    return values


def _fetch_config(name: str, revision: str | None) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BaseError(
            f"{name}: {first_line(error)} Without a network: put the base's config.json into a folder and give "
            "--set base=FOLDER; no weights are needed"
        ) from None
    values: dict[str, Any] = config.to_dict()
    return values


def _computed(config: Mapping[str, Any], family: Family) -> Shapes:
    """By arithmetic. Sizes are (outputs, inputs, bias), in the order of the family's targets."""
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    layers = config["num_hidden_layers"]
    if family.name == "gpt_neox":
        width, kv, norm = hidden, hidden, 2 * hidden  # a norm has a weight and a bias
        bias = bool(config.get("attention_bias", True))
        attention = [(3 * hidden, hidden, bias), (hidden, hidden, bias)]
        sizes = [*attention, (ffn, hidden, True), (hidden, ffn, True)]
    else:
        heads, norm = config["num_attention_heads"], hidden
        size = config.get("head_dim") or hidden // heads
        width, kv = heads * size, (config.get("num_key_value_heads") or heads) * size
        bias, mlp = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
        attention = [(outputs, hidden, bias) for outputs in (width, kv, kv)]
        feed_forward = [(ffn, hidden, mlp), (ffn, hidden, mlp), (hidden, ffn, mlp)]
        sizes = [*attention, (hidden, width, bias), *feed_forward]
    linears = tuple(
        Linear(name, outputs, inputs, layers, bias)
        for name, (outputs, inputs, bias) in zip(family.targets, sizes, strict=True)
    )
    rest = (2 * layers + 1) * norm
    tied = bool(config.get("tie_word_embeddings", False))
    return Shapes(family, layers, hidden, width, kv, ffn, config["vocab_size"], linears, rest, tied)


def _from_model(config: Mapping[str, Any]) -> Shapes:
    """Read off a model on the meta device."""
    import torch

    model = on_meta(config)
    family = look(model, str(config["model_type"]))
    entry, head = model.get_input_embeddings(), model.get_output_embeddings()
    values = model.config
    counts: dict[tuple[str, int, int, bool], int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            key = (name.rpartition(".")[2], *module.weight.shape, module.bias is not None)
            counts[key] = counts.get(key, 0) + 1
    linears = tuple(Linear(n, out, into, count, b) for (n, out, into, b), count in counts.items())
    tied = head.weight is entry.weight or bool(values.tie_word_embeddings)
    hidden, heads = values.hidden_size, values.num_attention_heads
    vocabulary = entry.weight.shape[0]
    size = getattr(values, "head_dim", None) or hidden // heads
    kv = (getattr(values, "num_key_value_heads", None) or heads) * size
    ffn = max((linear.outputs for linear in linears), default=4 * hidden)
    shapes = Shapes(
        family,
        values.num_hidden_layers,
        hidden,
        heads * size,
        kv,
        ffn,
        vocabulary,
        linears,
        0,
        tied,
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    return replace(shapes, rest=total - shapes.parameters)
