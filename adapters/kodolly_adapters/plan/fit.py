"""Which settings fit a GPU: the largest batch, and the first way that works."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .gpus import Gpu
from .memory import memory
from .setup import Setup, Strategy
from .shapes import Shapes

MOST = 1024  # sequences; more are no use


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run on these GPUs and the largest batch it takes; 0 where not even one sequence fits."""

    method: str
    strategy: Strategy
    checkpointed: int  # sequences with gradient checkpointing
    plain: int  # and without

    @property
    def fits(self) -> bool:
        """Whether it runs at all."""
        return self.checkpointed > 0 or self.plain > 0


def fits(shapes: Shapes, setup: Setup, gpu: Gpu) -> bool:
    """Whether the setup's fullest moment is within one GPU's memory."""
    return memory(shapes, setup).total <= gpu.memory


def largest(shapes: Shapes, setup: Setup, gpu: Gpu) -> int:
    """The largest batch (sequences a GPU) that fits, 0 for none, MOST at most."""
    low, high = 0, MOST
    while low < high:
        middle = (low + high + 1) // 2
        if fits(shapes, replace(setup, batch=middle), gpu):
            low = middle
        else:
            high = middle - 1
    return low


def ways(
    shapes: Shapes, setup: Setup, gpu: Gpu, gpus: int, strategies: Iterable[Strategy]
) -> Iterator[Way]:
    """The recipe's own method by each strategy, then the methods that need less."""
    cheaper = {"full": ("full", "lora", "qlora"), "lora": ("lora", "qlora")}
    order = list(strategies)
    for method in cheaper.get(setup.method, (setup.method,)):
        for strategy in order if method == setup.method else order[:1]:
            other = replace(setup, method=method, gpus=gpus, strategy=strategy)
            yield Way(
                method,
                strategy,
                largest(shapes, replace(other, checkpointing=True), gpu),
                largest(shapes, replace(other, checkpointing=False), gpu),
            )


def chosen(
    shapes: Shapes, setup: Setup, gpu: Gpu, gpus: int, strategies: Iterable[Strategy]
) -> Setup | None:
    """The recipe as written by the first strategy that fits; else changed as little as possible; else None.

    Tried in turn: the batch, half of it with twice the accumulation down to one, checkpointing, then QLoRA for LoRA.
    """
    order = list(strategies)
    methods = [setup.method, *(["qlora"] if setup.method == "lora" else [])]
    for method in methods:
        for checkpointing in dict.fromkeys([setup.checkpointing, True]):
            for strategy in order:
                own = replace(
                    setup, method=method, gpus=gpus, strategy=strategy, checkpointing=checkpointing
                )
                while not fits(shapes, own, gpu) and own.batch % 2 == 0:
                    own = replace(own, batch=own.batch // 2, accumulation=own.accumulation * 2)
                if fits(shapes, own, gpu):
                    return own
    return None
