"""Read the settings that merging needs from adapter_config.json; refuse any other that could change the result."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from kodolly_adapters.card import read_object
from kodolly_adapters.errors import AdapterError

CONFIG = "adapter_config.json"
RUN = "run.json"  # what `kodolly train` leaves beside its adapter/
# Values of init_lora_weights that leave the base's weights as they are.
LEAVES_BASE_UNCHANGED = (True, False, "gaussian", "eva", "orthogonal")
# Architectures whose Conv1D layers keep their weight the other way round: (in, out).
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
# Keys beside AdapterConfig's fields that merging need not read: they do not change the merged weights,
# or the adapter's tensors already show what they say (bias, modules_to_save), or _refuse checks them.
# fmt: off
UNREAD_KEYS = frozenset((
    "auto_mapping", "bias", "ensure_weight_tying", "eva_config", "inference_mode", "init_lora_weights",
    "layers_pattern", "lora_bias", "lora_dropout", "megatron_core", "modules_to_save", "peft_type",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
))
# fmt: on


class AdapterConfig(msgspec.Struct, frozen=True):
    """What merging needs of an adapter's config, under PEFT's names."""

    r: int
    lora_alpha: float
    base_model_name_or_path: str = ""
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False  # Conv1D layers
    target_modules: str | list[str] = []  # one regular expression, or names
    layers_to_transform: Any = None
    exclude_modules: Any = None
    # Ids of the trained token rows, by module or for all.
    trainable_token_indices: dict[str, list[int]] | list[int] | None = None

    def scale(self, module: str, rank: int) -> float:
        """The factor of B @ A in `module`. Raises AdapterError where its config has another rank than `rank`."""
        config_rank = _pattern_value(self.rank_pattern, module, self.r)
        if config_rank != rank:
            raise AdapterError(
                f"{module}: its lora_A has rank {rank}, {CONFIG} says {config_rank}: "
                "files of two adapters are mixed"
            )
        alpha: float = _pattern_value(self.alpha_pattern, module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def is_target(self, module: str) -> bool:
        """Whether target_modules names `module`, by PEFT's rules."""
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, module) is not None
        return f".{module}".endswith(tuple(f".{name}" for name in self.target_modules))


def adapter_folders(adapter: Path) -> list[Path]:
    """Folders where the adapter's files may be: its own, and its parent if `kodolly train` wrote that."""
    parent = adapter.resolve().parent
    return [adapter, parent] if (parent / RUN).is_file() else [adapter]


def read_adapter_config(directory: Path, model_type: str) -> AdapterConfig:
    """The config of the adapter in `directory`, for a base of `model_type`.

    Raises AdapterError naming the key that cannot be merged and what to do instead, InputError for broken JSON.
    """
    path = directory / CONFIG
    if not path.is_file():
        if (directory / "config.json").is_file():
            raise AdapterError(
                f"{directory}: is a whole model, not an adapter: there is nothing to merge"
            )
        raise AdapterError(f"{directory}: holds no {CONFIG}")
    config = {key: value for key, value in read_object(path).items() if value is not None}
    _refuse(config, path, model_type)
    try:
        return msgspec.convert(config, AdapterConfig)
    except msgspec.ValidationError as error:
        raise AdapterError(f"{path}: {error}") from None


def _refuse(config: Mapping[str, Any], path: Path, model_type: str) -> None:
    if (peft_type := config.get("peft_type")) != "LORA":
        raise AdapterError(f"{path}: peft_type is {peft_type}; only LORA adapters can be merged")
    initialisation = config.get("init_lora_weights", True)
    if initialisation not in LEAVES_BASE_UNCHANGED:
        raise AdapterError(
            f'{path}: init_lora_weights "{initialisation}" changed the base before training, so this '
            "adapter fits no base as published. Save it again with PEFT's "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...), then merge that"
        )
    if config.get("fan_in_fan_out") and model_type not in CONV1D_MODELS:
        raise AdapterError(
            f"{path}: fan_in_fan_out is for GPT-2's Conv1D; {model_type} has ordinary linear layers. "
            "Set it to false (PEFT itself ignores it there)"
        )
    for key, value in config.items():
        if value and key not in UNREAD_KEYS.union(AdapterConfig.__struct_fields__):
            raise AdapterError(f"{path}: {key} = {json.dumps(value)[:80]} cannot be merged here")


def _pattern_value(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of `module`'s name, as PEFT chooses it."""
    matches = (patterns[p] for p in patterns if re.match(rf"(.*\.)?({p})$", module))
    return next(matches, default)
