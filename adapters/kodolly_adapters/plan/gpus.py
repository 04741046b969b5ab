"""The GPUs a plan knows: figures from their makers' data sheets, and prices to be replaced by yours."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    name: str
    title: str
    memory: int  # bytes a process can use: what CUDA reports as total, below the label's GB
    bf16: float  # FLOP/s of dense bf16 matrix products
    fp32: float  # FLOP/s of plain fp32
    utilisation: float  # share of the peak that training reaches; assumed
    price: float  # USD an hour; assumed


# Peaks: NVIDIA's A100 data sheet (312 TFLOPS bf16 and 19.5 fp32 without sparsity, both sizes) and
# H100 data sheet, SXM5 (1,979 TFLOPS bf16 with sparsity, so 989.4 without; 66.9 fp32).
# Memory: what torch.cuda reports as the total of these cards.
# Utilisation: our assumption for transformers with gradient checkpointing and sdpa attention. An H100
# waits more for its memory, whose bandwidth grew less (3.35 TB/s after 2.04) than its peak.
# Prices: about the middle of on-demand prices at specialised clouds in May 2026 (an A100 of 80 GB
# 1.5-2.5, an H100 2.5-4.0). Large clouds ask more, spot prices are half.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40", "A100 40 GB", int(39.4 * GIB), 312e12, 19.5e12, 0.40, 1.30),
        Gpu("a100-80", "A100 80 GB", int(79.1 * GIB), 312e12, 19.5e12, 0.40, 2.00),
        Gpu("h100", "H100 80 GB", int(79.1 * GIB), 989.4e12, 66.9e12, 0.32, 3.00),
    )
}
