"""The base: its config, its weights in the precision of the run, and the adapter around them."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kodolly_adapters import families
from kodolly_adapters.errors import BaseError, RecipeError

from .hardware import Hardware
from .recipe import Recipe

PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
SAFE = ("model.safetensors", "model.safetensors.index.json")


def load_config(recipe: Recipe) -> Any:
    """The base's config. Raises BaseError naming the base and what to do."""
    from transformers import AutoConfig

    _check_directory(recipe)
    try:
        return AutoConfig.from_pretrained(
            recipe.base, revision=recipe.revision, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise BaseError(f"base {recipe.base}: {_first_line(error)}") from None


def load_model(recipe: Recipe, config: Any, precision: str, hardware: Hardware) -> Any:
    """The base's weights, or random ones from its config, ready for training.

    Weights that are trained are kept in fp32, whatever the precision of the arithmetic; frozen ones are kept in the
    precision itself. Raises BaseError where weights are missing, pickled or of another shape than the config says.
    """
    import torch
    from transformers import AutoModelForCausalLM

    attention = "flash_attention_2" if hardware.flash else "sdpa"
    if recipe.start == "random":
        torch.manual_seed(recipe.train.seed)
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    options: dict[str, Any] = {
        "dtype": torch.float32 if recipe.method == "full" else kinds[precision],
        "attn_implementation": attention,
    }
    if recipe.method == "qlora":
        options |= _four_bits(options["dtype"])
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            recipe.base,
            config=config,
            revision=recipe.revision,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseError(f"base {recipe.base}: {_first_line(error)}") from None
    if missing := sorted(report["missing_keys"]):
        raise BaseError(
            f"base {recipe.base}: its files hold no {missing[0]} ({len(missing)} tensors are missing): "
            "the download is incomplete, or config.json is another model's"
        )
    return model


def check_method(recipe: Recipe, hardware: Hardware) -> None:
    """Raise RecipeError where the method cannot run here: known before rows are prepared."""
    if recipe.method == "qlora" and hardware.device != "cuda":
        raise RecipeError('method: "qlora" needs a GPU; on a CPU use "lora"')
    if recipe.method == "qlora" and importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError('method: "qlora" needs bitsandbytes: pip install bitsandbytes')


def wrap(model: Any, recipe: Recipe, new_tokens: Sequence[int]) -> Any:
    """`model` with a fresh adapter by the recipe; rows of `new_tokens` are trained beside it.

    Raises RecipeError naming a target module that the model has not.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    family, lora = families.of(model.config), recipe.lora
    targets = lora.targets or list(family.targets)
    _check_targets(model, targets)
    if recipe.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        bias="none",
        task_type="CAUSAL_LM",
        trainable_token_indices=_trained_rows(model, family, new_tokens),
    )
    wrapped = get_peft_model(model, config)
    # Trained rows are kept by themselves. "auto" would ask a hub about the base at every checkpoint, and add
    # the whole matrix.
    wrapped.save_pretrained = functools.partial(
        wrapped.save_pretrained, save_embedding_layers=False
    )
    wrapped.peft_config["default"].base_model_name_or_path = recipe.base
    wrapped.peft_config["default"].revision = recipe.revision
    return wrapped


def output_embeddings(model: Any) -> Any | None:
    """The output head where it has weights of its own; None where they are the input's."""
    head, entry = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is entry.weight or model.config.tie_word_embeddings:
        return None
    return head


def _trained_rows(
    model: Any, family: families.Family, new_tokens: Sequence[int]
) -> dict[str, list[int]] | None:
    """PEFT's trainable_token_indices: by the last part of a module's name. A tied head follows its input."""
    if not new_tokens:
        return None
    entry, head = (name.rpartition(".")[2] for name in family.embeddings)
    rows = {entry: list(new_tokens)}
    if output_embeddings(model) is not None:
        rows[head] = list(new_tokens)
    return rows


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = ", ".join(families.of(model.config).targets)
            raise RecipeError(
                f"lora.targets: {type(model).__name__} has no module {target!r}; "
                f"its linear layers are {known}"
            )


def _check_directory(recipe: Recipe) -> None:
    """Refuse a directory without config or safe weights before anything is loaded."""
    place = Path(recipe.base)
    if not place.is_dir():
        if place.exists() or recipe.base.startswith((".", "/", "~")):
            raise BaseError(f"base {recipe.base}: no such directory")
        return
    if not (place / "config.json").is_file():
        raise BaseError(f"base {recipe.base}: it holds no config.json")
    if recipe.start == "random" or any((place / name).is_file() for name in SAFE):
        return
    if any((place / name).is_file() for name in PICKLED):
        raise BaseError(
            f"base {recipe.base}: it holds only pickled weights (.bin), and reading those can run code "
            "hidden in them. Take the model's safetensors revision, or convert one you trust: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    raise BaseError(f"base {recipe.base}: it holds no model.safetensors")


def _four_bits(compute: Any) -> dict[str, Any]:
    """Options for NF4 weights."""
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    }


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
