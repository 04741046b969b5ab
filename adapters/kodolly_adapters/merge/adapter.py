"""What an adapter does to each tensor of its base: every tensor it holds gets a meaning, or is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kodolly_adapters.errors import AdapterError
from kodolly_adapters.safetensors_io import FLOATS, Checkpoint, Tensor, header

from .adapter_config import CONFIG, AdapterConfig

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
# transformers 5 calls GPT-NeoX's output layer lm_head; in the files it is embed_out.
ALIASES = {"lm_head": "embed_out", "embed_out": "lm_head"}
INPUTS = ("embed_in.weight", "embed_tokens.weight", "wte.weight")  # ends of input embeddings' names
# What PEFT adds to the name of a module that it wraps.
WRAPPERS = (".base_layer", ".token_adapter", ".modules_to_save", ".default")
# Copies of the base's own values, which PEFT needs for unmerging only.
COPIES = (".original_module.", ".trainable_tokens_original")
# Names of an adapter's tensors within their module.
LORA_BIAS, MAGNITUDE, TOKENS = "lora_B.bias", "lora_magnitude_vector", "trainable_tokens_delta"
WRONG_BASE = "is that the base this adapter was trained on?"

Layout = Literal["linear", "conv1d", "embedding"]


@dataclass(frozen=True, slots=True)
class Lora:
    """W + scale * B @ A; with `magnitude`, every row of that is then brought to that length (DoRA).

    linear: W (out, in), A (r, in), B (out, r). conv1d: W (in, out), the same A and B.
    embedding: W (vocabulary, width), A (r, vocabulary), B (width, r).
    """

    a: Tensor
    b: Tensor
    scale: float
    layout: Layout = "linear"
    magnitude: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight it belongs to."""
        out, width = self.b.shape[0], self.a.shape[1]
        return (out, width) if self.layout == "linear" else (width, out)


@dataclass(slots=True)
class Change:
    """What happens to one tensor, in this order: replaced, LoRA or a bias added, single rows set."""

    replaced: Tensor | None = None
    lora: Lora | None = None
    added: tuple[Tensor, float] | None = None  # lora_bias: + scale * tensor
    tokens: tuple[tuple[int, ...], Tensor] | None = None  # (ids, their rows)


def read_changes(directory: Path, config: AdapterConfig, base: Checkpoint) -> dict[str, Change]:
    """Changes by the name of the tensor of `base` they belong to; a tied head that is in no file included.

    Raises AdapterError naming the tensors that match nothing in the base.
    """
    changes: dict[str, Change] = {}
    unmatched: list[str] = []
    for module, parts in _modules(directory).items():
        for part, tensor in parts.items():
            of_weight = part == TOKENS or part.startswith("lora_")
            leaf = "bias" if part == LORA_BIAS else "weight" if of_weight else part
            name = _base_name(module, leaf, base)
            if name is None and part == LORA_BIAS and _base_name(module, "weight", base):
                raise AdapterError(
                    f"{tensor.name}: the base's {module} has no bias to add it to (lora_bias = true): "
                    "such an adapter can only be served unmerged"
                )
            if name is None:
                unmatched.append(tensor.name)
                continue
            change = changes.setdefault(name, Change())
            if part == LORA_BIAS:
                change.added = (tensor, _lora(module, parts, config).scale)
            elif part == TOKENS:
                change.tokens = (_token_ids(module, config), tensor)
            elif part.startswith("lora_"):
                change.lora = change.lora or _lora(module, parts, config)
            else:
                change.replaced = tensor
    if unmatched:
        more = f" and {len(unmatched) - 8} more" if len(unmatched) > 8 else ""
        raise AdapterError(
            f"{directory}: nothing in {base.directory} belongs to {', '.join(sorted(unmatched)[:8])}{more}: "
            f"{WRONG_BASE}"
        )
    if not changes:
        raise AdapterError(f"{directory}: holds no tensor that changes anything")
    _check_complete(changes, config, base, directory)
    return changes


def check_fit(name: str, change: Change, tensor: Tensor, base: Path) -> None:
    """Raise AdapterError where `change` has another shape than the tensor `name` of `base` needs."""
    shape = (change.replaced or tensor).shape
    wrong = ""
    if change.replaced is not None and shape != tensor.shape:
        resized = len(shape) == 2 and shape[1:] == tensor.shape[1:]
        if change.lora is not None or not resized:
            wrong = f"{change.replaced.name} is {shape}"
    if change.lora is not None and change.lora.shape != shape:
        wrong = f"{change.lora.a.name} and lora_B make {change.lora.shape}"
    if change.added is not None and change.added[0].shape != shape:
        wrong = f"{change.added[0].name} is {change.added[0].shape}"
    if change.tokens is not None:
        ids, rows = change.tokens
        if rows.shape[0] != len(ids) or len(set(ids)) != len(ids) or min(ids, default=-1) < 0:
            wrong = f"{rows.name} has {rows.rows} rows for the tokens {list(ids)[:8]}"
        elif rows.shape[1:] != shape[1:]:
            wrong = f"{rows.name} has rows of {rows.width}"
    if tensor.dtype not in FLOATS:
        wrong = f"it is {tensor.dtype}, which holds no plain numbers"
    if wrong:
        raise AdapterError(f"{name} of {base} is {tensor.shape}: {wrong}: {WRONG_BASE}")


def _base_name(module: str, leaf: str, base: Checkpoint) -> str | None:
    """The base's name of a tensor: the module's own, GPT-NeoX's other name of the head, or a tied head's."""
    name = f"{module}.{leaf}"
    if name in base.tensors:
        return name
    if module not in ALIASES:
        return None
    if (other := f"{ALIASES[module]}.{leaf}") in base.tensors:
        return other
    if leaf != "weight" or not any(key.endswith(INPUTS) for key in base.tensors):
        return None
    neox = any(key.startswith("gpt_neox.") for key in base.tensors)
    return "embed_out.weight" if neox else "lm_head.weight"


def _modules(directory: Path) -> dict[str, dict[str, Tensor]]:
    """The adapter's tensors by module and part: "lora_A", "lora_B.bias", "weight", "bias", TOKENS, ..."""
    if not (directory / WEIGHTS).is_file():
        if (directory / "adapter_model.bin").is_file():
            raise AdapterError(
                f"{directory}: adapter_model.bin can run code when read. Load the adapter with PEFT where "
                "you trust it and save it again: save_pretrained(DIR, safe_serialization=True)"
            )
        raise AdapterError(f"{directory}: holds no {WEIGHTS}")
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in sorted(header(directory / WEIGHTS)[0].items()):
        if any(copy in f"{key}." for copy in COPIES):
            continue
        if tensor.dtype not in FLOATS:
            raise AdapterError(f"{directory}: {key} is {tensor.dtype}, not floating point")
        path, lora, leaf = key.removeprefix(PREFIX).rpartition(".lora_")
        if lora:
            part = f"lora_{leaf.partition('.')[0]}" + (".bias" if leaf.endswith(".bias") else "")
        else:
            path, _, part = leaf.rpartition(".")
        while wrapper := next((end for end in WRAPPERS if path.endswith(end)), ""):
            path = path.removesuffix(wrapper)
        modules.setdefault(path, {})[part] = tensor
    return modules


def _lora(module: str, parts: Mapping[str, Tensor], config: AdapterConfig) -> Lora:
    layout: Layout = "conv1d" if config.fan_in_fan_out else "linear"
    first, second = "lora_A", "lora_B"
    if "lora_embedding_A" in parts:
        layout, first, second = "embedding", "lora_embedding_A", "lora_embedding_B"
    magnitude = parts.get(MAGNITUDE)
    extra = {part for part in parts if part.startswith("lora_")} - {first, second, LORA_BIAS}
    if layout == "linear":
        extra.discard(MAGNITUDE)
    if extra:
        what = f"DoRA on {layout} layers" if extra == {MAGNITUDE} else min(extra)
        raise AdapterError(
            f"{module}: {what} cannot be merged here; PEFT's merge_and_unload may do it"
        )
    a, b = parts.get(first), parts.get(second)
    if a is None or b is None:
        raise AdapterError(f"{module}: one of {first} and {second} is missing")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape:
        raise AdapterError(
            f"{module}: lora_A {a.shape} and lora_B {b.shape} are no pair: "
            "saved from one process of a sharded run?"
        )
    if config.use_dora != (magnitude is not None):
        raise AdapterError(
            f"{module}: {CONFIG} says use_dora = {str(config.use_dora).lower()}, but there is "
            f"{'no' if config.use_dora else 'a'} {MAGNITUDE}"
        )
    if magnitude is not None and math.prod(magnitude.shape) != b.shape[0]:
        raise AdapterError(f"{magnitude.name}: {magnitude.shape} for {b.shape[0]} rows")
    return Lora(a, b, config.scale(module, a.shape[0]), layout, magnitude)


def _token_ids(module: str, config: AdapterConfig) -> tuple[int, ...]:
    """The ids of the trained token rows of `module`."""
    ids = config.trainable_token_indices
    if isinstance(ids, dict):
        for name, rows in ids.items():
            names = (f".{name}", f".{ALIASES.get(name, name)}")
            if f".{module}".endswith(names):
                return tuple(rows)
        if module in ALIASES and len(ids) == 1:  # a tied head, saved with its embedding
            return tuple(*ids.values())
    elif ids is not None:
        return tuple(ids)
    raise AdapterError(
        f"{module}: has trained token rows, but {CONFIG} (trainable_token_indices) does not say whose"
    )


def _check_complete(
    changes: Mapping[str, Change], config: AdapterConfig, base: Checkpoint, directory: Path
) -> None:
    """A base with more layers than the adapter has is the wrong base; PEFT would only warn."""
    if config.layers_to_transform or config.exclude_modules:  # meant for some layers only
        return
    unchanged = [
        name
        for name, tensor in base.tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2
        if config.is_target(name.removesuffix(".weight"))
        if name not in changes or changes[name].lora is None
    ]
    if unchanged:
        raise AdapterError(
            f"{directory}: has nothing for {unchanged[0]} of {base.directory} ({len(unchanged)} such), "
            f"which target_modules in {CONFIG} names: {WRONG_BASE}"
        )
