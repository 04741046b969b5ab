"""The base model on this machine: its config, its weights in the precision of the run, and the adapter around them."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from kodolly_adapters import families
from kodolly_adapters.errors import BaseError, RecipeError, first_line

from .recipe import Recipe
from .tokenizer import needed_rows

ROUND_TO = 64  # rows of a grown embedding, for tensor cores and tensor parallelism
NOISE = 0.1  # of a new row, in standard deviations of the old rows
# A row shorter than this share of the others' length, or of their distance from their mean, was never trained.
FRESH = 0.5
SAMPLE = 4096  # of the other rows, to compare with


@dataclass(frozen=True, slots=True)
class Hardware:
    """The devices of one run. `world` processes share it; this one is `rank`."""

    device: str  # "cuda" or "cpu"
    names: tuple[str, ...]  # of this machine's devices
    world: int
    rank: int
    bf16: bool  # in hardware
    flash: bool  # FlashAttention 2 can be used

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files and messages."""
        return self.rank == 0


def find_hardware() -> Hardware:
    """The hardware of this process. WORLD_SIZE and RANK are torchrun's."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        names = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        flash = bf16 and importlib.util.find_spec("flash_attn") is not None
        return Hardware("cuda", names, world, rank, bf16, flash)
    cpu = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return Hardware("cpu", (cpu,), world, rank, bf16=False, flash=False)


def choose_precision(setting: str, hardware: Hardware) -> str:
    """ "fp32", "bf16" or "fp16": what train.precision says, or the hardware's best for "auto".

    bf16 on a CPU is done where a recipe says so but never chosen: without AMX it is some twenty times slower than
    fp32. Raises RecipeError for what the hardware cannot do.
    """
    if setting == "auto":
        return ("bf16" if hardware.bf16 else "fp16") if hardware.device == "cuda" else "fp32"
    if setting == "fp16" and hardware.device == "cpu":
        raise RecipeError('train.precision: "fp16" needs a GPU; on a CPU use "auto" or "fp32"')
    if setting == "bf16" and hardware.device == "cuda" and not hardware.bf16:
        raise RecipeError(
            f'train.precision: {hardware.names[0]} has no bf16; use "auto", "fp16" or "fp32"'
        )
    return setting


def check_method(recipe: Recipe, hardware: Hardware) -> None:
    """Raise RecipeError where the method cannot run on this machine."""
    if recipe.method != "qlora":
        return
    if hardware.device != "cuda":
        raise RecipeError('method: "qlora" needs a GPU; on a CPU use "lora"')
    if importlib.util.find_spec("bitsandbytes") is None:
        raise RecipeError('method: "qlora" needs bitsandbytes: pip install bitsandbytes')


def check_base(recipe: Recipe, config: Any) -> None:
    """Raise BaseError where an adapter for this base could not be merged."""
    if getattr(config, "quantization_config", None):
        raise BaseError(
            f"base {recipe.base}: its config.json has a quantization_config. Train on the model it was "
            'quantised from; method = "qlora" quantises that while it trains'
        )


def load_model(recipe: Recipe, config: Any, precision: str, hardware: Hardware) -> Any:
    """The base's weights, or random ones from its config, ready for training.

    Weights that are trained are kept in fp32, whatever the precision of the arithmetic; frozen ones are kept in the
    precision itself. Raises BaseError where weights are missing, pickled or of another shape than the config says.
    """
    attention = "flash_attention_2" if hardware.flash else "sdpa"
    # The embedding gives this row no gradient, and LLaMA's cannot be made where there is no such row. Nothing else
    # reads it here: padding is masked.
    config.get_text_config().pad_token_id = None
    if recipe.start == "random":
        torch.manual_seed(recipe.train.seed)
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = torch.float32 if recipe.method == "full" else dtypes[precision]
    four_bit = None
    if recipe.method == "qlora":
        four_bit = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            recipe.base,
            config=config,
            revision=recipe.revision,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            dtype=dtype,
            attn_implementation=attention,
            quantization_config=four_bit,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BaseError(f"base {recipe.base}: {first_line(error)}") from None
    for name, stored, expected in sorted(report["mismatched_keys"]):
        raise BaseError(
            f"base {recipe.base}: {name} is {list(stored)} in its files, config.json says {list(expected)}: "
            "put config.json right (vocab_size are the rows of the embeddings)"
        )
    if missing := sorted(report["missing_keys"]):
        raise BaseError(
            f"base {recipe.base}: its files hold no {missing[0]} ({len(missing)} tensors are missing): "
            "the download is incomplete, or config.json is another model's"
        )
    return model


def ends_of(model: Any) -> list[int]:
    """The ids at which the model ends an answer, by its generation config."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def untrained_rows(model: Any, ids: Sequence[int]) -> list[int]:
    """Those of `ids`, tokens added to the base's vocabulary, of which a row is as it was made, not as trained.

    A row is made near zero, at the mean of the others (transformers' resizing), or at random with the config's
    initializer_range. A trained row may look like the last; to train it once more does no harm.
    """
    ids = [token for token in ids if token < len(model.get_input_embeddings().weight)]
    if not ids:
        return []
    spread, made = getattr(model.config, "initializer_range", None), torch.zeros(len(ids)).bool()
    for layer in (model.get_input_embeddings(), _own_head(model)):
        if layer is None:
            continue
        weight = layer.weight.detach()
        others = weight[: min(ids)]
        others = others[:: max(1, len(others) // SAMPLE)].float()
        rows, mean = weight[ids].float(), others.mean(dim=0)
        lengths = rows.norm(dim=1)
        made |= (lengths < FRESH * others.norm(dim=1).median()).cpu()
        made |= ((rows - mean).norm(dim=1) < FRESH * (others - mean).norm(dim=1).median()).cpu()
        if spread:  # lengths of random rows: their mean, and four standard deviations around it
            width = weight.shape[1]
            made |= ((lengths / (spread * width**0.5) - 1).abs() < 4 / (2 * width) ** 0.5).cpu()
    return [token for token, is_made in zip(ids, made.tolist(), strict=True) if is_made]


def grow(model: Any, tokenizer: Any, new_ids: Sequence[int], seed: int) -> None:
    """Give every token a row in the embeddings, and those of `new_ids` a start.

    Never takes rows away: Polyglot has 30,080 for 30,003 tokens. A new row starts at the mean of the old ones
    with a little noise, the same for the same seed.
    """
    rows = total = int(model.get_input_embeddings().weight.shape[0])
    if (needed := needed_rows(tokenizer)) > rows:
        total = -(-needed // ROUND_TO) * ROUND_TO
        model.resize_token_embeddings(total, mean_resizing=False)
    if fresh := sorted({*new_ids, *range(rows, total)}):
        for shift, layer in enumerate([model.get_input_embeddings(), _own_head(model)]):
            if layer is not None:
                _start_rows(layer.weight, fresh, seed + shift)


def wrap(model: Any, recipe: Recipe, new_ids: Sequence[int]) -> Any:
    """`model` with a fresh adapter. Raises RecipeError for unknown targets.

    LoRA freezes the embeddings, so rows of `new_ids` are trained beside it. Left random, as the study left them,
    the model could neither read its own keys nor write the one that ends an answer.
    """
    family, lora = families.of(model.config), recipe.lora
    targets, head = lora.targets or list(family.targets), model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    ]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            raise RecipeError(
                f"lora.targets: {type(model).__name__} has no linear layer {target!r}; "
                f"its linear layers are {', '.join(family.targets)}"
            )
    if recipe.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    names = [name.rpartition(".")[2] for name in family.embeddings]
    layers = names if _own_head(model) is not None else names[:1]
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        bias="none",
        task_type="CAUSAL_LM",
        trainable_token_indices={layer: list(new_ids) for layer in layers} if new_ids else None,
    )
    wrapped = get_peft_model(model, config)
    # Trained rows are saved by themselves. "auto" would ask a hub about the base at every checkpoint, and add
    # the whole matrix.
    wrapped.save_pretrained = functools.partial(
        wrapped.save_pretrained, save_embedding_layers=False
    )
    config.base_model_name_or_path, config.revision = recipe.base, recipe.revision
    return wrapped


def _own_head(model: Any) -> Any | None:
    """The output embeddings where they have weights of their own; None where they share the input's."""
    head, entry = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is entry.weight or model.config.tie_word_embeddings:
        return None
    return head


def _start_rows(weight: Any, fresh: Sequence[int], seed: int) -> None:
    """Fill rows `fresh` (ascending) of `weight` (vocabulary, hidden) from the rows before the first."""
    with torch.no_grad():
        rows = weight[: fresh[0]].float()
        mean, deviation = rows.mean(dim=0), rows.std(dim=0)
        source = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(fresh), rows.shape[1], generator=source).to(rows.device)
        weight[list(fresh)] = (mean + NOISE * deviation * noise).to(weight.dtype)
