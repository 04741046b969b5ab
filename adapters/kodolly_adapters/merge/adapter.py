"""What an adapter does to each tensor of its base: every tensor it holds gets a meaning, or is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kodolly_adapters.errors import AdapterError
from kodolly_adapters.safetensors_io import FLOATS, Checkpoint, Tensor, adapter_tensors

from .settings import CONFIG, Settings

PREFIX = "base_model.model."
# transformers 5 calls GPT-NeoX's output layer lm_head; in the files it is embed_out.
ALIASES = {"lm_head": "embed_out", "embed_out": "lm_head"}
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
    tokens: tuple[tuple[int, ...], Tensor] | None = None

    @property
    def rows(self) -> int:
        """Rows that the change needs the tensor to have; 0 where it does not say."""
        if self.replaced is not None:
            return self.replaced.rows
        return max(self.tokens[0]) + 1 if self.tokens else 0


@dataclass(slots=True)
class _Parts:
    """The tensors of one module, by what they are."""

    lora: dict[str, Tensor] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)  # "weight", "bias", ...
    tokens: Tensor | None = None


def changes(directory: Path, settings: Settings, base: Checkpoint) -> dict[str, Change]:
    """Changes by the name of the tensor of `base` they belong to; a head that is not in the file included.

    Raises AdapterError naming the tensors that match nothing, or do not fit.
    """
    parts = _sort(adapter_tensors(directory), directory)
    found: dict[str, Change] = {}
    unmatched: list[str] = []
    for module, part in parts.items():
        if part.lora or part.tokens:
            name = tensor_name(module, "weight", base)
            if name is None:
                unmatched += [t.name for t in (*part.lora.values(), part.tokens) if t is not None]
                continue
            change = found.setdefault(name, Change())
            if part.lora:
                change.lora = _lora(module, part.lora, settings, base)
            if part.tokens:
                change.tokens = (_indices(module, settings), part.tokens)
        for leaf, tensor in part.values.items():
            name = tensor_name(module, leaf, base)
            if name is None:
                unmatched.append(tensor.name)
            else:
                found.setdefault(name, Change()).replaced = tensor
        _add_bias(module, part, settings, base, found)
    if unmatched:
        shown = ", ".join(sorted(unmatched)[:8])
        more = f" and {len(unmatched) - 8} more" if len(unmatched) > 8 else ""
        raise AdapterError(
            f"{directory}: nothing in {base.directory} belongs to {shown}{more}: is that the base "
            "this adapter was trained on?"
        )
    if not found:
        raise AdapterError(f"{directory}: holds no tensor that changes anything")
    _check_complete(found, settings, base, directory)
    for name, change in found.items():
        _check_fit(name, change, base)
    return found


def tensor_name(module: str, leaf: str, base: Checkpoint) -> str | None:
    """The base's name of `module`'s tensor: its own, GPT-NeoX's other name of the head, or a tied head's."""
    name = f"{module}.{leaf}"
    if name in base.tensors:
        return name
    head, _, rest = module.partition(".")
    other = f"{ALIASES[head]}.{leaf}" if head in ALIASES and not rest else None
    if other in base.tensors:
        return other
    if other is not None and leaf == "weight":  # tied: the file needs no head
        neox = any(key.startswith("gpt_neox.") for key in base.tensors)
        return "embed_out.weight" if neox else "lm_head.weight"
    return None


def _sort(tensors: Mapping[str, Tensor], directory: Path) -> dict[str, _Parts]:
    modules: dict[str, _Parts] = {}
    for key, tensor in sorted(tensors.items()):
        if any(copy in f"{key}." for copy in COPIES):
            continue
        if tensor.dtype not in FLOATS:
            raise AdapterError(f"{directory}: {key} is {tensor.dtype}, not floating point")
        name = key.removeprefix(PREFIX)
        module, kind, leaf = _split(name)
        part = modules.setdefault(module, _Parts())
        if kind == "tokens":
            part.tokens = tensor
        elif kind == "lora":
            part.lora[leaf] = tensor
        else:
            part.values[leaf] = tensor
    return modules


def _split(name: str) -> tuple[str, str, str]:
    """(module, "lora" | "tokens" | "value", leaf) of a key without its prefix."""
    if name.endswith("trainable_tokens_delta"):
        return _unwrap(name.removesuffix(".trainable_tokens_delta")), "tokens", ""
    module, mark, leaf = name.rpartition(".lora_")
    if mark:
        kind, _, rest = leaf.partition(".")
        rest = rest.removeprefix("default").removeprefix(".")
        return _unwrap(module), "lora", f"{kind}.{rest}" if rest == "bias" else kind
    module, _, leaf = name.rpartition(".")
    return _unwrap(module), "value", leaf


def _unwrap(module: str) -> str:
    while shorter := next((module.removesuffix(w) for w in WRAPPERS if module.endswith(w)), ""):
        module = shorter
    return module


def _lora(module: str, part: Mapping[str, Tensor], settings: Settings, base: Checkpoint) -> Lora:
    layout: Layout = "conv1d" if settings.conv1d else "linear"
    known = {"A", "B", "B.bias", "magnitude_vector"}
    if "embedding_A" in part:
        layout, known = "embedding", {"embedding_A", "embedding_B"}
    if extra := sorted(set(part) - known):
        what = "DoRA on an embedding" if extra == ["magnitude_vector"] else f"lora_{extra[0]}"
        raise AdapterError(
            f"{module}: {what} cannot be merged here; PEFT's merge_and_unload may do it"
        )
    stem = "embedding_" if layout == "embedding" else ""
    a, b = part.get(f"{stem}A"), part.get(f"{stem}B")
    if a is None or b is None:
        raise AdapterError(f"{module}: one of lora_{stem}A and lora_{stem}B is missing")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape:
        raise AdapterError(
            f"{module}: lora_A {a.shape} and lora_B {b.shape} are no pair: "
            "saved from one process of a sharded run?"
        )
    magnitude = part.get("magnitude_vector")
    if settings.dora != (magnitude is not None):
        raise AdapterError(
            f"{module}: {CONFIG} says use_dora = {str(settings.dora).lower()}, but there is "
            f"{'no' if settings.dora else 'a'} lora_magnitude_vector"
        )
    lora = Lora(a, b, settings.scale(module, a.shape[0]), layout, magnitude)
    if magnitude is not None and (layout != "linear" or magnitude.size == 0):
        raise AdapterError(f"{module}: DoRA on Conv1D cannot be merged here")
    if magnitude is not None and max(magnitude.shape) != b.shape[0]:
        raise AdapterError(f"{magnitude.name}: {magnitude.shape} for {b.shape[0]} rows")
    return lora


def _indices(module: str, settings: Settings) -> tuple[int, ...]:
    if isinstance(settings.tokens, Mapping):
        for name, ids in settings.tokens.items():
            names = (name, ALIASES.get(name, name))
            if any(module == known or module.endswith(f".{known}") for known in names):
                return ids
        if module in ALIASES and len(settings.tokens) == 1:  # a tied head, saved with its embedding
            return next(iter(settings.tokens.values()))
    elif settings.tokens is not None:
        return settings.tokens
    raise AdapterError(
        f"{module}: has trained token rows, but {CONFIG} (trainable_token_indices) does not say whose"
    )


def _add_bias(
    module: str, part: _Parts, settings: Settings, base: Checkpoint, found: dict[str, Change]
) -> None:
    bias = part.lora.get("B.bias")
    if bias is None:
        return
    name = tensor_name(module, "bias", base)
    if name is None:
        raise AdapterError(
            f"{bias.name}: the base's {module} has no bias to add it to (lora_bias = true): "
            "such an adapter can only be served unmerged"
        )
    scale = settings.scale(module, part.lora["B"].shape[1])
    found.setdefault(name, Change()).added = (bias, scale)


def _check_complete(
    found: Mapping[str, Change], settings: Settings, base: Checkpoint, directory: Path
) -> None:
    """A base with more layers than the adapter knows is the wrong base; PEFT would only warn."""
    if settings.partial:
        return
    bare = [
        name
        for name, tensor in base.tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2
        if settings.is_target(name.removesuffix(".weight"))
        if name not in found or found[name].lora is None
    ]
    if bare:
        raise AdapterError(
            f"{directory}: has nothing for {bare[0]} of {base.directory} ({len(bare)} such), which "
            f"target_modules in {CONFIG} names: is that the base this adapter was trained on?"
        )


def _check_fit(name: str, change: Change, base: Checkpoint) -> None:
    tensor = base.tensors.get(name)
    start = change.replaced or tensor
    shape = start.shape if start is not None else None
    resizable = change.lora is None and len(shape or ()) == 2
    wrong = ""
    if tensor is not None and change.replaced is not None:
        same = change.replaced.shape == tensor.shape
        if not same and not (resizable and change.replaced.shape[1:] == tensor.shape[1:]):
            wrong = f"{change.replaced.name} is {change.replaced.shape}"
    if change.lora is not None and shape is not None and change.lora.shape != shape:
        wrong = f"{change.lora.a.name} and lora_B make {change.lora.shape}"
    if change.added is not None and change.added[0].shape != shape:
        wrong = f"{change.added[0].name} is {change.added[0].shape}"
    if change.tokens is not None:
        ids, rows = change.tokens
        if rows.shape[0] != len(ids) or len(set(ids)) != len(ids) or min(ids, default=-1) < 0:
            wrong = f"{rows.name} has {rows.rows} rows for the tokens {list(ids)[:8]}"
        elif shape is not None and rows.shape[1:] != shape[1:]:
            wrong = f"{rows.name} has rows of {rows.width}"
    if tensor is not None and tensor.dtype not in FLOATS:
        wrong = f"it is {tensor.dtype}, which holds no plain numbers"
    if wrong:
        place = f"{name} of {base.directory}" + (
            f" is {tensor.shape}" if tensor is not None else ""
        )
        raise AdapterError(f"{place}: {wrong}: is that the base this adapter was trained on?")
