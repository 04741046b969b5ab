"""adapter_config.json, read strictly: what decides the arithmetic; every setting not understood is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import AdapterError

CONFIG = "adapter_config.json"
# Values of init_lora_weights that leave the base's weights as they are.
STARTS_FROM_BASE = (True, False, "gaussian", "eva", "orthogonal")
# Architectures whose Conv1D layers keep their weight the other way round: (in, out).
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
# Keys that are read below, or do not change the merged weights.
# fmt: off
SUPPORTED_KEYS = frozenset((
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias",
    "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
    "lora_alpha", "lora_bias", "lora_dropout", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size",
    "r", "rank_pattern", "revision", "runtime_config",
    "target_modules", "task_type", "trainable_token_indices", "use_dora",
    "use_rslora",
))
# fmt: on


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What an adapter's config says, as far as merging needs it."""

    base: str  # the base's name as recorded; "" where none is
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    conv1d: bool
    targets: tuple[str, ...] | str  # names, or one regular expression
    some_layers: bool  # the adapter is meant for some layers only
    tokens: Mapping[str, tuple[int, ...]] | tuple[int, ...] | None  # ids, by module or for all

    def scale(self, module: str, rank: int) -> float:
        """The factor of B @ A in `module`. Raises AdapterError where the config gives it another rank."""
        configured = _pattern(self.rank_pattern, module, self.rank)
        if configured != rank:
            raise AdapterError(
                f"{module}: its lora_A has rank {rank}, {CONFIG} says {configured}: "
                "files of two adapters are mixed"
            )
        alpha: float = _pattern(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def is_target(self, module: str) -> bool:
        """Whether target_modules names `module`, by PEFT's rules."""
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in self.targets)


def read_adapter_config(directory: Path, model_type: str) -> AdapterConfig:
    """The config of the adapter in `directory`, for a base of `model_type`.

    Raises AdapterError naming the key that cannot be merged, and what to do instead.
    """
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (directory / "config.json").is_file():
            raise AdapterError(
                f"{directory}: is a whole model, not an adapter: there is nothing to merge"
            ) from None
        raise AdapterError(f"{directory}: holds no {CONFIG}") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: no JSON object")
    _refuse(config, path, model_type)
    targets = config.get("target_modules") or ()
    try:
        return AdapterConfig(
            base=config.get("base_model_name_or_path") or "",
            rank=int(config["r"]),
            alpha=config["lora_alpha"],
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
            conv1d=bool(config.get("fan_in_fan_out")),
            targets=targets if isinstance(targets, str) else tuple(targets),
            some_layers=any(config.get(key) for key in ("layers_to_transform", "exclude_modules")),
            tokens=_token_ids(config.get("trainable_token_indices")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(f"{path}: {error!r} cannot be used") from None


def _refuse(config: Mapping[str, Any], path: Path, model_type: str) -> None:
    if (kind := config.get("peft_type")) != "LORA":
        raise AdapterError(f"{path}: peft_type is {kind}; only LORA adapters can be merged")
    start = config.get("init_lora_weights", True)
    if start not in STARTS_FROM_BASE:
        raise AdapterError(
            f'{path}: init_lora_weights "{start}" changed the base before training, so this adapter '
            "fits no base as published. Save it again with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...), then merge that"
        )
    if config.get("fan_in_fan_out") and model_type not in CONV1D_MODELS:
        raise AdapterError(
            f"{path}: fan_in_fan_out is for GPT-2's Conv1D; {model_type} has ordinary linear layers. "
            "Set it to false (PEFT itself ignores it there)"
        )
    for key, value in config.items():
        if key not in SUPPORTED_KEYS and value:
            raise AdapterError(f"{path}: {key} = {json.dumps(value)[:80]} cannot be merged here")


def _token_ids(value: Any) -> Mapping[str, tuple[int, ...]] | tuple[int, ...] | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: tuple(map(int, ids)) for name, ids in value.items()}
    return tuple(map(int, value))


def _pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of `module`'s name, as PEFT chooses it."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
