"""What an adapter does to each tensor of its base: every tensor it holds gets a meaning, or is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _Module:
    """The adapter's tensors of one module, by what they are."""

    lora: dict[str, Tensor] = field(default_factory=dict)  # "A", "B", "B.bias", "embedding_A", ...
    values: dict[str, Tensor] = field(default_factory=dict)  # "weight", "bias"
    tokens: Tensor | None = None


def read_changes(directory: Path, config: AdapterConfig, base: Checkpoint) -> dict[str, Change]:
    """Changes by the name of the tensor of `base` they belong to; a tied head that is in no file included.

    Raises AdapterError naming the tensors that match nothing in the base.
    """
    changes: dict[str, Change] = {}
    unmatched: list[str] = []
    for path, module in _modules(directory).items():
        trained = [*module.lora.values(), *([module.tokens] if module.tokens else [])]
        if trained:
            name = _base_name(path, "weight", base)
            if name is None:
                unmatched += [tensor.name for tensor in trained]
                continue
            change = changes.setdefault(name, Change())
            if module.lora:
                change.lora = _lora(path, module.lora, config)
            if module.tokens:
                change.tokens = (_token_ids(path, config), module.tokens)
        for leaf, tensor in module.values.items():
            name = _base_name(path, leaf, base)
            if name is None:
                unmatched.append(tensor.name)
            else:
                changes.setdefault(name, Change()).replaced = tensor
        if bias := module.lora.get("B.bias"):
            name = _base_name(path, "bias", base)
            if name is None:
                raise AdapterError(
                    f"{bias.name}: the base's {path} has no bias to add it to (lora_bias = true): "
                    "such an adapter can only be served unmerged"
                )
            scale = config.scale(path, module.lora["B"].shape[1])
            changes.setdefault(name, Change()).added = (bias, scale)
    if unmatched:
        shown = ", ".join(sorted(unmatched)[:8])
        more = f" and {len(unmatched) - 8} more" if len(unmatched) > 8 else ""
        raise AdapterError(
            f"{directory}: nothing in {base.directory} belongs to {shown}{more}: is that the base "
            "this adapter was trained on?"
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
        raise AdapterError(
            f"{name} of {base} is {tensor.shape}: {wrong}: is that the base this adapter was trained on?"
        )


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


def _modules(directory: Path) -> dict[str, _Module]:
    """The adapter's tensors by module. Raises AdapterError where there are none that can be read."""
    modules: dict[str, _Module] = {}
    for key, tensor in sorted(_tensors(directory).items()):
        if any(copy in f"{key}." for copy in COPIES):
            continue
        if tensor.dtype not in FLOATS:
            raise AdapterError(f"{directory}: {key} is {tensor.dtype}, not floating point")
        path, lora, leaf = key.removeprefix(PREFIX).rpartition(".lora_")
        if not lora:
            path, _, leaf = leaf.rpartition(".")
        while wrapper := next((end for end in WRAPPERS if path.endswith(end)), ""):
            path = path.removesuffix(wrapper)
        module = modules.setdefault(path, _Module())
        if lora:
            kind, _, rest = leaf.partition(".")
            is_bias = rest.removeprefix("default").removeprefix(".") == "bias"
            module.lora[f"{kind}.bias" if is_bias else kind] = tensor
        elif leaf == "trainable_tokens_delta":
            module.tokens = tensor
        else:
            module.values[leaf] = tensor
    return modules


def _tensors(directory: Path) -> dict[str, Tensor]:
    if (directory / WEIGHTS).is_file():
        try:
            return header(directory / WEIGHTS)[0]
        except (ValueError, OSError) as error:
            raise AdapterError(str(error)) from None
    if (directory / "adapter_model.bin").is_file():
        raise AdapterError(
            f"{directory}: adapter_model.bin can run code when read. Load the adapter with PEFT where "
            "you trust it and save it again: save_pretrained(DIR, safe_serialization=True)"
        )
    raise AdapterError(f"{directory}: holds no {WEIGHTS}")


def _lora(module: str, tensors: Mapping[str, Tensor], config: AdapterConfig) -> Lora:
    layout: Layout = "conv1d" if config.conv1d else "linear"
    supported = {"A", "B", "B.bias", "magnitude_vector"}
    if "embedding_A" in tensors:
        layout, supported = "embedding", {"embedding_A", "embedding_B"}
    if extra := sorted(set(tensors) - supported):
        what = "DoRA on an embedding" if extra == ["magnitude_vector"] else f"lora_{extra[0]}"
        raise AdapterError(
            f"{module}: {what} cannot be merged here; PEFT's merge_and_unload may do it"
        )
    stem = "embedding_" if layout == "embedding" else ""
    a, b = tensors.get(f"{stem}A"), tensors.get(f"{stem}B")
    if a is None or b is None:
        raise AdapterError(f"{module}: one of lora_{stem}A and lora_{stem}B is missing")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape:
        raise AdapterError(
            f"{module}: lora_A {a.shape} and lora_B {b.shape} are no pair: "
            "saved from one process of a sharded run?"
        )
    magnitude = tensors.get("magnitude_vector")
    if config.dora != (magnitude is not None):
        raise AdapterError(
            f"{module}: {CONFIG} says use_dora = {str(config.dora).lower()}, but there is "
            f"{'no' if config.dora else 'a'} lora_magnitude_vector"
        )
    scale = config.scale(module, a.shape[0])
    if magnitude is not None and (layout != "linear" or magnitude.size == 0):
        raise AdapterError(f"{module}: DoRA on Conv1D cannot be merged here")
    if magnitude is not None and max(magnitude.shape) != b.shape[0]:
        raise AdapterError(f"{magnitude.name}: {magnitude.shape} for {b.shape[0]} rows")
    return Lora(a, b, scale, layout, magnitude)


def _token_ids(module: str, config: AdapterConfig) -> tuple[int, ...]:
    """The ids of the trained token rows of `module`."""
    if isinstance(config.tokens, Mapping):
        for name, ids in config.tokens.items():
            names = (name, ALIASES.get(name, name))
            if any(module == other or module.endswith(f".{other}") for other in names):
                return ids
        if module in ALIASES and len(config.tokens) == 1:  # a tied head, saved with its embedding
            return next(iter(config.tokens.values()))
    elif config.tokens is not None:
        return config.tokens
    raise AdapterError(
        f"{module}: has trained token rows, but {CONFIG} (trainable_token_indices) does not say whose"
    )


def _check_complete(
    changes: Mapping[str, Change], config: AdapterConfig, base: Checkpoint, directory: Path
) -> None:
    """A base with more layers than the adapter has is the wrong base; PEFT would only warn."""
    if config.some_layers:
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
            f"which target_modules in {CONFIG} names: is that the base this adapter was trained on?"
        )
