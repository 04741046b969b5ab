"""What a run needs of one GPU: its memory item by item, in bytes, and its arithmetic for a token.

Counted from shapes: weights, gradients, optimiser states, operations. Estimated: activations (activations.toml), the
loss and the overhead. docs/plan.md works one recipe out by hand.
"""

from __future__ import annotations

from typing import Any

from .recipe import Recipe
from .shapes import Shapes, table

Values = dict[str, Any]  # by name, as `kodolly plan --json` prints them

GIB = 2**30
FP32 = 4  # bytes
WIDTH = {"fp32": FP32, "bf16": 2}  # bytes of a number of the arithmetic
# Bytes of the optimiser's state for a trained parameter, by what its name holds; else two moments in fp32.
STATE = {"8bit": 2, "sgd": 0, "adafactor": 0.1}
# NF4: half a byte a weight; its scales, one of 8 bits for 64 weights and one of 32 for 256 scales.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# TRL never makes all logits: it goes through tiles of this many tokens by entries of the vocabulary.
TILE_TOKENS, TILE_ENTRIES = 4096, 32768
CONTEXT = GIB  # CUDA's own, cuBLAS's and NCCL's buffers; assumed
FRAGMENTS = 0.05  # of everything else, lost between the allocator's blocks; assumed


def setup_of(recipe: Recipe) -> Values:
    """The recipe as written, on one GPU: the setup that everything below is computed from. Raises RecipeError.

    fp16 is planned as bf16: both take two bytes. "batch" is sequences of "length" tokens that one GPU computes at
    a time; "strategy" across GPUs is none, ddp or fsdp.
    """
    train, lora, dialect = recipe.train, recipe.lora, recipe.dialect()
    return {
        "method": recipe.method,
        "precision": "fp32" if train.precision == "fp32" else "bf16",
        **lora.model_dump(include={"r", "dora", "dropout", "targets"}),
        "new_tokens": len(dialect.special_tokens) if dialect and lora.train_new_tokens else 0,
        "optimizer": train.optimizer,
        "batch": train.batch_size,
        "accumulation": train.accumulation,
        "length": recipe.data.max_length,
        "packing": recipe.data.packing,
        "checkpointing": train.gradient_checkpointing,
        "gpus": 1,
        "strategy": "none",
    }


def trainable(shapes: Shapes, setup: Values) -> int:
    """How many parameters are trained: of an adapter A (r, inputs), B (outputs, r), DoRA's magnitudes, new rows."""
    if setup["method"] == "full":
        return shapes.parameters
    tunable: int = setup["new_tokens"] * shapes.hidden * (1 if shapes.tied else 2)
    for one in shapes.select(setup["targets"]):
        size = setup["r"] * (one.inputs + one.outputs) + setup["dora"] * one.outputs
        tunable += one.count * size
    return tunable


def flops(shapes: Shapes, setup: Values) -> dict[str, int]:
    """FLOP for a token: two for each weight it meets, and attention over the whole sequence, as MFU is usually counted.

    Backward: twice that in full tuning; with frozen weights once, for the inputs' gradients alone. Attention has no
    weights and costs twice either way. Checkpointing computes the layers forward a second time.
    """
    head = 2 * shapes.embedding
    products = 2 * shapes.matrices + head
    attention = 4 * setup["length"] * shapes.attention * shapes.layers
    forward, weights = products + attention, products
    if setup["method"] != "full":
        adapter = 2 * trainable(shapes, setup)
        forward, weights = forward + adapter, 2 * adapter
    backward = products + weights + 2 * attention
    again = forward - head if setup["checkpointing"] else 0
    total = forward + backward + again
    return {"forward": forward, "backward": backward, "recomputation": again, "total": total}


def memory(shapes: Shapes, setup: Values) -> dict[str, int]:
    """Bytes that one GPU of this setup needs at its fullest moment: every item, and the total."""
    full, fsdp = setup["method"] == "full", setup["strategy"] == "fsdp"
    tokens, width = setup["batch"] * setup["length"], WIDTH[setup["precision"]]
    tunable = trainable(shapes, setup)
    state = next((size for name, size in STATE.items() if name in setup["optimizer"]), 2 * FP32)
    shards = setup["gpus"] if fsdp else 1

    # Trained weights are fp32; frozen ones are in the arithmetic's precision, or NF4 in QLoRA.
    if full:
        # Autocast holds a second copy of every weight in the arithmetic's precision; FSDP does not.
        weights = (FP32 + (width if width < FP32 and not fsdp else 0)) * tunable
    elif setup["method"] == "qlora":  # PEFT keeps what is not quantised in fp32
        others = shapes.parameters - shapes.matrices
        weights = int(NF4 * shapes.matrices) + FP32 * (others + tunable)
    else:
        weights = width * shapes.parameters + FP32 * tunable

    # Without checkpointing all insides; with it the input of every layer and the inside of one, which is
    # kept a second time as gradients, of which about half live together.
    inside = tokens * inside_of(shapes, setup)
    activations = shapes.layers * inside
    if setup["checkpointing"]:
        stream = FP32 if full else width
        activations = tokens * shapes.layers * shapes.hidden * stream + 1.5 * inside

    # A tile of logits, and the gradient of the last hidden states in fp32. With trained rows of new tokens
    # TRL's tiles do not work: `kodolly train` makes the logits of learned tokens, here all of them, and
    # fp32 copies for the cross entropy and its gradient.
    if setup["new_tokens"] and not full:
        loss = tokens * shapes.vocabulary * (2 * width + 3 * FP32)
    else:
        tile = min(tokens, TILE_TOKENS) * min(shapes.vocabulary, TILE_ENTRIES)
        loss = tile * width + FP32 * tokens * shapes.hidden

    # DDP: a copy of the gradients. FSDP: the layer at work, the next one, and both embeddings.
    layer = shapes.linear // max(1, shapes.layers)  # parameters
    both = shapes.embedding * (1 if shapes.tied else 2)
    gather = width * both + 2 * (NF4 if setup["method"] == "qlora" else width) * layer
    if full:
        gather += FP32 * layer
    communication = {"none": 0, "ddp": FP32 * tunable, "fsdp": int(gather)}
    # transformers has bitsandbytes keep the input embedding's states in fp32.
    wide = full and "8bit" in setup["optimizer"] and "torch" not in setup["optimizer"]
    states = state * tunable + wide * (2 * FP32 - state) * shapes.embedding
    if "lion" in setup["optimizer"]:  # one moment instead of two
        states /= 2
    items = {
        "weights": weights // shards,
        "gradients": FP32 * tunable // shards,
        "optimizer": int(states) // shards,
        "activations": int(activations),
        "loss": loss,
        "communication": communication[setup["strategy"]],
    }
    items["overhead"] = CONTEXT + int(FRAGMENTS * sum(items.values()))
    return items | {"total": sum(items.values())}


def inside_of(shapes: Shapes, setup: Values) -> float:
    """Bytes that one layer keeps for its backward pass, for a token (activations.toml).

    LoRA's dropout keeps a copy and a mask of one byte for each target's input.
    """
    family = "gpt_neox" if shapes.family.name == "gpt_neox" else "llama"
    method = "full" if setup["method"] == "full" else "lora"
    hidden, kv, ffn = table("activations.toml")[family][method][setup["precision"]]
    size: float = hidden * shapes.hidden + kv * shapes.kv + ffn * shapes.ffn
    if method == "lora" and setup["dropout"]:
        inputs = sum(linear.inputs * linear.count for linear in shapes.select(setup["targets"]))
        size += inputs / shapes.layers * (WIDTH[setup["precision"]] + 1)
    return size
