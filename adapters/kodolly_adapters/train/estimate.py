"""What a run needs of one GPU: its memory item by item, in bytes, and its arithmetic for a token.

Counted from shapes: weights, gradients, optimiser states, operations. Estimated: activations (INSIDE), the
loss and the overhead. docs/plan.md works one recipe out by hand.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from .recipe import Recipe
from .shapes import Shapes

Strategy = Literal["none", "ddp", "fsdp"]

GIB = 2**30
FP32 = 4  # bytes
# Bytes of the optimiser's state for a trained parameter, by what its name holds; else two moments in fp32.
STATE = {"8bit": 2, "sgd": 0, "adafactor": 0.1}
# NF4: half a byte a weight; its scales, one of 8 bits for 64 weights and one of 32 for 256 scales.
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
# TRL never makes all logits: it goes through tiles of this many tokens by entries of the vocabulary.
TILE_TOKENS, TILE_ENTRIES = 4096, 32768
# Bytes that one layer keeps for a token: times hidden, times width of keys, times feed-forward width.
INSIDE = {
    ("gpt_neox", "full", "bf16"): (22, 0, 4),
    ("gpt_neox", "lora", "bf16"): (26, 0, 4),  # 6 of them: autocast on CUDA makes layer norms fp32
    ("gpt_neox", "full", "fp32"): (40, 0, 8),
    ("gpt_neox", "lora", "fp32"): (40, 0, 8),
    ("llama", "full", "bf16"): (30, 4, 8),
    ("llama", "lora", "bf16"): (24, 4, 8),
    ("llama", "full", "fp32"): (32, 8, 16),
    ("llama", "lora", "fp32"): (24, 8, 16),
}
CONTEXT = GIB  # CUDA's own, cuBLAS's and NCCL's buffers; assumed
FRAGMENTS = 0.05  # of everything else, lost between the allocator's blocks; assumed


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to run a recipe. `batch` is sequences of `length` tokens that one GPU computes at a time."""

    method: str  # "full", "lora" or "qlora"
    precision: str  # "bf16" or "fp32": of the arithmetic
    r: int
    dora: bool
    dropout: float
    targets: tuple[str, ...]
    new_tokens: int
    optimizer: str
    batch: int
    accumulation: int
    length: int
    packing: bool
    checkpointing: bool
    gpus: int = 1
    strategy: Strategy = "none"

    @property
    def tokens(self) -> int:
        """Tokens that one GPU computes at a time."""
        return self.batch * self.length

    @property
    def width(self) -> int:
        """Bytes of one number of the arithmetic."""
        return 4 if self.precision == "fp32" else 2


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    communication: int  # DDP's buckets, or the layers that FSDP has gathered
    overhead: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())

    def as_dict(self) -> dict[str, int]:
        """Every item and the total, by name."""
        return asdict(self) | {"total": self.total}


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations for one token of training."""

    forward: int
    backward: int
    recomputation: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.forward + self.backward + self.recomputation


def setup_of(recipe: Recipe) -> Setup:
    """The recipe as it is written, on one GPU (fp16 is planned as bf16: both take two bytes). Raises RecipeError."""
    train, lora, dialect = recipe.train, recipe.lora, recipe.dialect()
    return Setup(
        method=recipe.method,
        precision="fp32" if train.precision == "fp32" else "bf16",
        r=lora.r,
        dora=lora.dora,
        dropout=lora.dropout,
        targets=tuple(lora.targets),
        new_tokens=len(dialect.special_tokens) if dialect and lora.train_new_tokens else 0,
        optimizer=train.optimizer,
        batch=train.batch_size,
        accumulation=train.accumulation,
        length=recipe.data.max_length,
        packing=recipe.data.packing,
        checkpointing=train.gradient_checkpointing,
    )


def trainable(shapes: Shapes, setup: Setup) -> int:
    """How many parameters are trained."""
    if setup.method == "full":
        return shapes.parameters
    return shapes.adapter(setup.targets, setup.r, dora=setup.dora, new_tokens=setup.new_tokens)


def flops(shapes: Shapes, setup: Setup) -> Flops:
    """Two for each weight a token meets, and attention over the whole sequence, as MFU is usually counted.

    Backward: twice that in full tuning; with frozen weights once, for the inputs' gradients alone. Attention has no
    weights and costs twice either way. Checkpointing computes the layers forward a second time.
    """
    products, head = 2 * shapes.products, 2 * shapes.embedding
    attention = 4 * setup.length * shapes.attention * shapes.layers
    forward, weights = products + attention, products
    if setup.method != "full":
        adapter = 2 * trainable(shapes, setup)
        forward, weights = forward + adapter, 2 * adapter
    backward = products + weights + 2 * attention
    return Flops(forward, backward, forward - head if setup.checkpointing else 0)


def memory(shapes: Shapes, setup: Setup) -> Memory:
    """What one GPU of this setup needs at its fullest moment."""
    shards = setup.gpus if setup.strategy == "fsdp" else 1
    state = next((size for name, size in STATE.items() if name in setup.optimizer), 2 * FP32)
    trained = trainable(shapes, setup)
    items = {
        "weights": _weights(shapes, setup, trained) // shards,
        "gradients": FP32 * trained // shards,
        "optimizer": int(state * trained) // shards,
        "activations": _activations(shapes, setup),
        "loss": _loss(shapes, setup),
        "communication": _communication(shapes, setup, trained),
    }
    return Memory(**items, overhead=CONTEXT + int(FRAGMENTS * sum(items.values())))


def inside_of(shapes: Shapes, setup: Setup) -> float:
    """Bytes that one layer keeps for its backward pass, for a token; attention keeps no scores.

    The factors are what autograd keeps in transformers 5.23 with sdpa (a test measures it again). LoRA's
    dropout keeps a copy and a mask of one byte for each target's input.
    """
    family = "gpt_neox" if shapes.family.name == "gpt_neox" else "llama"
    method = "full" if setup.method == "full" else "lora"
    hidden, kv, ffn = INSIDE[family, method, setup.precision]
    size: float = hidden * shapes.hidden + kv * shapes.kv + ffn * shapes.ffn
    if method == "lora" and setup.dropout:
        inputs = sum(linear.inputs * linear.count for linear in shapes.targeted(setup.targets))
        size += inputs / shapes.layers * (setup.width + 1)
    return size


def _weights(shapes: Shapes, setup: Setup, trained: int) -> int:
    """Trained weights are fp32; frozen ones are in the arithmetic's precision, or NF4 in QLoRA."""
    if setup.method == "full":
        # Autocast holds a second copy of every weight in the arithmetic's precision; FSDP does not.
        copy = setup.width if setup.width < FP32 and setup.strategy != "fsdp" else 0
        return (FP32 + copy) * shapes.parameters
    if setup.method == "qlora":  # PEFT keeps what is not quantised in fp32
        packed = sum(linear.weights for linear in shapes.linears)
        return int(NF4 * packed) + FP32 * (shapes.parameters - packed) + FP32 * trained
    return setup.width * shapes.parameters + FP32 * trained


def _activations(shapes: Shapes, setup: Setup) -> int:
    """With checkpointing the input of every layer and the inside of one; without it, all insides."""
    inside = setup.tokens * inside_of(shapes, setup)
    if not setup.checkpointing:
        return int(shapes.layers * inside)
    stream = FP32 if setup.method == "full" else setup.width
    # The inside is kept a second time as gradients, of which about half live together.
    return int(setup.tokens * shapes.layers * shapes.hidden * stream + 1.5 * inside)


def _loss(shapes: Shapes, setup: Setup) -> int:
    """A tile of logits, and the gradient of the last hidden states in fp32.

    With trained rows of new tokens TRL's tiles do not work: `kodolly train` makes the logits of learned tokens, here
    all of them, and fp32 copies for the cross entropy and its gradient.
    """
    if setup.new_tokens and setup.method != "full":
        return setup.tokens * shapes.vocabulary * (2 * setup.width + 3 * FP32)
    tile = min(setup.tokens, TILE_TOKENS) * min(shapes.vocabulary, TILE_ENTRIES) * setup.width
    return tile + FP32 * setup.tokens * shapes.hidden


def _communication(shapes: Shapes, setup: Setup, trained: int) -> int:
    """DDP: a copy of the gradients. FSDP: the layer at work, the next one, and both embeddings."""
    if setup.strategy == "ddp":
        return FP32 * trained
    if setup.strategy == "none":
        return 0
    layer = shapes.linear // max(1, shapes.layers)  # parameters
    root = setup.width * (shapes.embedding + shapes.head)
    number = NF4 if setup.method == "qlora" else setup.width
    gradients = FP32 * layer if setup.method == "full" else 0
    return int(root + 2 * number * layer + gradients)
