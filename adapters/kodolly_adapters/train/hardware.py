"""What this machine computes with, and what follows from it: precision, attention, micro-batches."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

from kodolly_adapters.errors import RecipeError

# On scaled-dot-product attention a packed micro-batch is one sequence whose cost grows with its square.
FOLD_TOKENS = 2048


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
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def described(self) -> dict[str, Any]:
        """What run.json keeps of it."""
        return asdict(self) | {"names": list(self.names), "machine": platform.machine()}


def look() -> Hardware:
    """The hardware of this process. WORLD_SIZE and RANK are torchrun's."""
    import torch

    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        names = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        flash = bf16 and importlib.util.find_spec("flash_attn") is not None
        return Hardware("cuda", names, world, rank, bf16, flash)
    cpu = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return Hardware("cpu", (cpu,), world, rank, bf16=False, flash=False)


def precision(asked: str, hardware: Hardware) -> str:
    """ "fp32", "bf16" or "fp16": what the recipe asks for, or the hardware's best for "auto".

    bf16 on a CPU is honoured but never chosen: without AMX it is some twenty times slower than fp32.
    Raises RecipeError for what the hardware cannot do.
    """
    if asked == "auto":
        return ("bf16" if hardware.bf16 else "fp16") if hardware.device == "cuda" else "fp32"
    if asked == "fp16" and hardware.device == "cpu":
        raise RecipeError('train.precision: "fp16" needs a GPU; on a CPU use "auto" or "fp32"')
    if asked == "bf16" and hardware.device == "cuda" and not hardware.bf16:
        raise RecipeError(
            f'train.precision: {hardware.names[0]} has no bf16; use "auto", "fp16" or "fp32"'
        )
    return asked


def micro_batches(
    batch: int, accumulation: int, max_length: int, *, packing: bool, flash: bool
) -> tuple[int, int]:
    """(sequences a forward pass, passes a step): the same effective batch, in shapes that are fast.

    A packed batch is flattened into one sequence with a block-diagonal mask. Without FlashAttention the mask is
    dense, so a long one is computed in pieces; the loss is a mean over the tokens of all pieces either way.
    """
    if not packing or flash:
        return batch, accumulation
    most = max(1, FOLD_TOKENS // max_length)
    size = max(part for part in range(1, min(batch, most) + 1) if batch % part == 0)
    return size, accumulation * (batch // size)
