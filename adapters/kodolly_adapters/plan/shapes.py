"""The shapes of a decoder, and its parameters counted exactly from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kodolly_adapters.errors import BaseError, RecipeError
from kodolly_adapters.families import Family, look, of, on_meta


@dataclass(frozen=True, slots=True)
class Linear:
    """`count` linear layers of one name, each of a weight (outputs, inputs)."""

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
        """The matrices and their biases."""
        return self.weights + (self.outputs * self.count if self.bias else 0)


@dataclass(frozen=True, slots=True)
class Shapes:
    """A decoder: its linear layers without the head, its embeddings, and what remains."""

    family: Family
    layers: int
    hidden: int
    attention: int  # width of the queries: heads x size of one
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
        return 0 if self.tied else self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        return self.embedding + self.head + self.linear + self.rest

    @property
    def linear(self) -> int:
        """Parameters of the linear layers without the head."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def products(self) -> int:
        """Weights that every token is multiplied with: the linear layers and the head."""
        return sum(linear.weights for linear in self.linears) + self.vocabulary * self.hidden

    def targeted(self, targets: Iterable[str]) -> tuple[Linear, ...]:
        """The linear layers of these names; all of them for none. RecipeError for a name that is not there."""
        wanted = tuple(targets) or self.family.targets
        names = [linear.name for linear in self.linears]
        for target in wanted:
            if target not in names:
                raise RecipeError(
                    f"lora.targets: {self.family.name} has no linear layer {target}; "
                    f"it has {', '.join(dict.fromkeys(names))}"
                )
        return tuple(linear for linear in self.linears if linear.name in wanted)

    def adapter(self, targets: Iterable[str], r: int, *, dora: bool, new_tokens: int) -> int:
        """Trainable parameters: A (r, inputs) and B (outputs, r) a layer, DoRA's magnitudes, new rows."""
        matrices = sum(
            linear.count * (r * (linear.inputs + linear.outputs) + (linear.outputs if dora else 0))
            for linear in self.targeted(targets)
        )
        return matrices + new_tokens * self.hidden * (1 if self.tied else 2)


def shapes_of(config: Mapping[str, Any]) -> Shapes:
    """The shapes of a config (config.json). Raises BaseError where they cannot be known.

    GPT-NeoX and LLaMA are computed; any other decoder is built on the meta device and read off.
    """
    family = of(config)
    try:
        if family.name == "gpt_neox":
            return _neox(config, family)
        if family.name == "llama":
            return _llama(config, family)
    except KeyError as error:
        raise BaseError(f"the base's config.json does not say {error.args[0]}") from None
    return _any(config)


def _neox(config: Mapping[str, Any], family: Family) -> Shapes:
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    layers = config["num_hidden_layers"]
    bias = bool(config.get("attention_bias", True))
    linears = (
        Linear("query_key_value", 3 * hidden, hidden, layers, bias),
        Linear("dense", hidden, hidden, layers, bias),
        Linear("dense_h_to_4h", ffn, hidden, layers, True),
        Linear("dense_4h_to_h", hidden, ffn, layers, True),
    )
    norms = (2 * layers + 1) * 2 * hidden  # each a weight and a bias
    tied = bool(config.get("tie_word_embeddings", False))
    vocabulary = config["vocab_size"]
    return Shapes(family, layers, hidden, hidden, hidden, ffn, vocabulary, linears, norms, tied)


def _llama(config: Mapping[str, Any], family: Family) -> Shapes:
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    width, kv = heads * size, (config.get("num_key_value_heads") or heads) * size
    bias, mlp = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    linears = (
        Linear("q_proj", width, hidden, layers, bias),
        Linear("k_proj", kv, hidden, layers, bias),
        Linear("v_proj", kv, hidden, layers, bias),
        Linear("o_proj", hidden, width, layers, bias),
        Linear("gate_proj", ffn, hidden, layers, mlp),
        Linear("up_proj", ffn, hidden, layers, mlp),
        Linear("down_proj", hidden, ffn, layers, mlp),
    )
    norms = (2 * layers + 1) * hidden
    tied = bool(config.get("tie_word_embeddings", False))
    return Shapes(
        family, layers, hidden, width, kv, ffn, config["vocab_size"], linears, norms, tied
    )


def _any(config: Mapping[str, Any]) -> Shapes:
    """Read off a model on the meta device."""
    import torch

    model = on_meta(config)
    family = look(model, str(config["model_type"]))
    entry, head = model.get_input_embeddings(), model.get_output_embeddings()
    found: dict[tuple[str, int, int, bool], int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            key = (name.rpartition(".")[2], *module.weight.shape, module.bias is not None)
            found[key] = found.get(key, 0) + 1
    linears = tuple(Linear(n, out, into, count, b) for (n, out, into, b), count in found.items())
    tied = head.weight is entry.weight or bool(model.config.tie_word_embeddings)
    values = model.config
    hidden, layers = values.hidden_size, values.num_hidden_layers
    heads = values.num_attention_heads
    size = getattr(values, "head_dim", None) or hidden // heads
    kv = (getattr(values, "num_key_value_heads", None) or heads) * size
    vocabulary = entry.weight.shape[0]
    ffn = max((linear.outputs for linear in linears), default=4 * hidden)
    named = sum(parameter.numel() for parameter in model.parameters())
    own = sum(linear.parameters for linear in linears)
    rest = named - own - vocabulary * hidden * (1 if tied else 2)
    return Shapes(family, layers, hidden, heads * size, kv, ffn, vocabulary, linears, rest, tied)
