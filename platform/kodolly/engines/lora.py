"""LoRA adapters that an engine adds to its base model at run time, checked before it starts.

vLLM reads an adapter only after the base is loaded, minutes later, and silently ignores some tensors
that it does not know. So an adapter that it cannot add is refused here with the reason. Such an
adapter can still be served: merged into its base.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kodolly.engines.weights import TensorInfo, model_tensors, tensors_of
from kodolly.errors import SettingsError

log = logging.getLogger(__name__)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "merge it with `kodolly merge BASE ADAPTER --out DIR` and serve DIR"
FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# Names of the input and output embeddings in GPT-NeoX, LLaMA and GPT-2. For some architectures vLLM
# adds LoRA to them, for others it ignores it.
VOCABULARY = frozenset({"embed_in", "embed_tokens", "wte", "embed_out", "lm_head"})
# Keys of adapter_config.json that, if set, ask for more than the product of two matrices.
BEYOND_LORA = {
    "use_dora": "it is a DoRA adapter",
    "modules_to_save": "it replaces whole modules (modules_to_save)",
    "trainable_token_indices": "it has trained rows of the embedding (trainable_token_indices)",
    "lora_bias": "it trains biases (lora_bias)",
    "layer_replication": "it repeats layers (layer_replication)",
    "target_parameters": "it changes parameters that are no linear layers (target_parameters)",
    "alora_invocation_tokens": "it is an Activated LoRA",
    "use_bdlora": "it is a block-diagonal LoRA",
    "use_qalora": "it is a QALoRA",
}
# Values of init_lora_weights that leave the base unchanged. Others (PiSSA, OLoRA, LoftQ ...) train
# against a changed base, so the adapter would not fit the original one.
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
# Types of plain weights, by safetensors' names. Quantised weights are stored in other shapes.
FLOAT_TYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """An adapter: the name it is served by, its directory, and the largest rank of its layers."""

    name: str
    path: str
    rank: int


def read_adapter(name: str, directory: Path, base: Path) -> LoraAdapter:
    """The adapter in `directory`, checked against the base model's directory.

    A `base` that is a hub id is not checked. Raises SettingsError with the problem and the cure.
    """
    try:
        config, tensors = _read(directory)
        _refuse_more_than_lora(config)
        factors = _factors(tensors)
        ranks = _declared_ranks(config)
        _check_ranks(factors, ranks)
        if base.is_dir():
            _check_fit(factors, model_tensors(base), base)
            _mention_other_base(name, config, base)
    except SettingsError as error:
        raise SettingsError(f"--adapters: {name}={directory}: {error}") from error
    return LoraAdapter(name, str(directory.resolve()), max(ranks))


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    if not directory.is_dir():
        raise SettingsError("there is no such directory")
    if not (directory / CONFIG).is_file():
        raise SettingsError(f"it has no {CONFIG}{_guess(directory)}")
    if not (directory / WEIGHTS).is_file():
        raise SettingsError(f"it has no {WEIGHTS}: only safetensors are read")
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise SettingsError(f"{CONFIG}: a JSON object is expected")
    return config, tensors_of(directory / WEIGHTS)


def _guess(directory: Path) -> str:
    if (directory / "adapter" / CONFIG).is_file():
        return f"; {directory / 'adapter'} has one: is that the one meant?"
    if (directory / "config.json").is_file():
        return ": it is a whole model, to be served with --model"
    return ": it is no adapter that PEFT saved"


def _refuse_more_than_lora(config: Mapping[str, Any]) -> None:
    """Raises SettingsError for a kind of adapter that vLLM cannot add."""
    reasons = [text for key, text in BEYOND_LORA.items() if config.get(key)]
    if (kind := config.get("peft_type")) != "LORA":
        reasons.insert(0, f"its peft_type is {kind!r}, not 'LORA'")
    if config.get("bias") not in (None, "none"):
        reasons.append(f"it trains biases (bias = {config['bias']!r})")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in PLAIN_INITS:
        reasons.append(f"it was made for a changed base (init_lora_weights = {start!r})")
    if reasons:
        raise SettingsError(f"{reasons[0]}, which an engine cannot add at run time: {MERGE}")


def _factors(tensors: Mapping[str, TensorInfo]) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """Module name -> (A, B): shapes (rank, in) and (out, rank) of each linear layer's matrices."""
    sides: dict[str, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        match = FACTOR.fullmatch(name)
        if match is None or match[1].rpartition(".")[2] in VOCABULARY:
            raise SettingsError(
                f"its tensor {name} is no low-rank change of a linear layer (trained token rows,"
                f" a resized vocabulary, a head?), which an engine cannot add at run time: {MERGE}"
            )
        sides.setdefault(match[1], {})[match[2]] = info
    if not sides:
        raise SettingsError(f"{WEIGHTS} holds nothing")
    for module, pair in sides.items():
        if len(pair) < 2 or any(len(info.shape) != 2 for info in pair.values()):
            raise SettingsError(f"{module} needs two matrices, lora_A and lora_B: it is damaged")
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _declared_ranks(config: Mapping[str, Any]) -> set[int]:
    ranks = {config.get("r"), *(config.get("rank_pattern") or {}).values()}
    wrong = [r for r in ranks if not isinstance(r, int) or isinstance(r, bool) or r < 1]
    if wrong:
        raise SettingsError(f"{CONFIG}: a rank must be a positive whole number, not {wrong[0]!r}")
    return {r for r in ranks if isinstance(r, int)}


def _check_ranks(factors: Mapping[str, tuple[TensorInfo, TensorInfo]], ranks: set[int]) -> None:
    for module, (a, b) in factors.items():
        if a.shape[0] != b.shape[1] or a.shape[0] not in ranks:
            declared = ", ".join(map(str, sorted(ranks)))
            raise SettingsError(
                f"{module} has lora_A of {_size(a.shape)} and lora_B of {_size(b.shape)}, where"
                f" {CONFIG} says rank {declared}: they do not belong together"
            )


def _check_fit(
    factors: Mapping[str, tuple[TensorInfo, TensorInfo]],
    weights: Mapping[str, TensorInfo],
    base: Path,
) -> None:
    """Raises SettingsError if the base lacks a layer of the adapter, or has it in another shape."""
    if not weights:
        log.warning("%s has no safetensors: its adapters cannot be checked against it", base)
        return
    modules = {name.rpartition(".")[0] for name in weights}
    for module, (a, b) in factors.items():
        match = next((name for name in _spellings(module) if name in modules), None)
        if match is None:
            raise SettingsError(f"it changes {module}, which {base} does not have: another base's?")
        weight = weights.get(f"{match}.weight")
        if weight is None or weight.dtype not in FLOAT_TYPES:
            continue  # quantised
        if weight.shape != (b.shape[0], a.shape[1]):
            raise SettingsError(
                f"it changes {module} as one of {b.shape[0]} x {a.shape[1]}, but in {base} it is"
                f" {_size(weight.shape)}: it belongs to another base"
            )


def _spellings(module: str) -> Iterator[str]:
    """Names that a checkpoint may have for a module: with or without the first part (`model.`)."""
    yield module
    yield module.partition(".")[2]


def _mention_other_base(name: str, config: Mapping[str, Any], base: Path) -> None:
    """Logs a warning if the adapter was trained on a base of another name.

    Only a warning: the base may have been renamed. The shapes alone cannot show a wrong base, since
    models of one family have the same.
    """
    trained_on = str(config.get("base_model_name_or_path") or "").rstrip("/")
    if trained_on and trained_on.rpartition("/")[2] != base.resolve().name:
        log.warning(
            "adapter %s was trained on %s and is served on %s: its shapes fit, but only the same"
            " weights give its answers",
            name,
            trained_on,
            base,
        )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
