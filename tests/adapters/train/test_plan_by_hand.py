"""Two recipes against arithmetic done by hand: every number below was worked out on paper.

docs/plan.md shows the same sums. Nothing here calls the code for an expected value.
"""

from __future__ import annotations

from typing import Any

import pytest

from kodolly_adapters.train.estimate import flops, memory, setup_of, trainable
from kodolly_adapters.train.plan import cost, gpus, plan
from kodolly_adapters.train.recipe import load
from kodolly_adapters.train.shapes import shapes_of, table

# polyglot-ko-12.8b-lora: h 5,120; 40 layers; feed-forward 4h = 20,480; vocabulary 30,080; r 32.
# A layer's matrices: 3h x h, h x h, 4h x h, h x 4h = 12 h^2                            = 314,572,800
#   its biases: 3h + h + 4h + h = 9h                                                   =      46,080
#   its two layer norms, weight and bias each: 4h                                      =      20,480
# 40 layers                                              40 x 314,639,360              = 12,585,574,400
# last norm 2h = 10,240; embedding and head 2 x 30,080 x 5,120                         =    308,019,200
P_LORA = 12_893_603_840
# A layer's adapter: r x ((h + 3h) + (h + h) + (h + 4h) + (4h + h)) = 32 x 16h = 2,621,440; x 40
A_LORA = 104_857_600

# Memory at 4 sequences of 2,048 tokens = 8,192 tokens, checkpointing on, bf16, one GPU:
MEMORY_LORA = {
    "weights": 26_206_638_080,  # 2 x P + 4 x A = 25,787,207,680 + 419,430,400
    "gradients": 419_430_400,  # 4 x A
    "optimizer": 838_860_800,  # 8 x A
    # Inputs of 40 layers: 8,192 x 40 x 5,120 x 2                     = 3,355,443,200
    # Inside of one, a token: 26h + 4 x 20,480 = 133,120 + 81,920     =       215,040
    #   dropout: inputs h + h + h + 4h = 35,840, each 2 + 1 bytes     =       107,520
    #   8,192 x 322,560 x 1.5                                         = 3,963,617,280
    "activations": 7_319_060_480,
    # Tile 4,096 x 30,080 x 2 = 246,415,360; gradient 8,192 x 5,120 x 4 = 167,772,160
    "loss": 414_187_520,
    "communication": 0,
    "overhead": 2_833_650_688,  # 2^30 + 5 % of 35,198,177,280 = 1,073,741,824 + 1,759,908,864
}

# FLOP a token: matrices 40 x 314,572,800 + head 154,009,600 = 12,736,921,600; twice: 25,473,843,200
#   attention 4 x 2,048 x 5,120 x 40 = 1,677,721,600; adapter 2 x A = 209,715,200
# Backward: 25,473,843,200 for the inputs, 2 x 209,715,200 for the adapter, 2 x 1,677,721,600
# Recomputed: forward without the head's 308,019,200
FLOPS_LORA = {
    "forward": 27_361_280_000,
    "backward": 29_248_716_800,
    "recomputation": 27_053_260_800,
}

# polyglot-ko-1.3b-full: h 2,048; 24 layers; 8 sequences of 2,048 = 16,384 tokens.
P_FULL = 1_331_810_304
MEMORY_FULL = {
    "weights": 7_990_861_824,  # (4 + 2) x P: fp32, and autocast's bf16 copy
    "gradients": 5_327_241_216,  # 4 x P
    "optimizer": 10_654_482_432,  # 8 x P
    # 16,384 x 24 x 2,048 x 4 = 3,221,225,472; inside 22h + 4 x 8,192 = 77,824 a token,
    # 16,384 x 77,824 x 1.5 = 1,912,602,624
    "activations": 5_133_828_096,
    # 4,096 x 30,080 x 2 = 246,415,360; 16,384 x 2,048 x 4 = 134,217,728
    "loss": 380_633_088,
    "communication": 0,
    "overhead": 2_548_094_156,  # 2^30 + 5 % of 29,487,046,656
}
# Matrices 24 x 12 h^2 = 1,207,959,552, head 61,603,840: 1,269,563,392; twice 2,539,126,784
#   attention 4 x 2,048 x 2,048 x 24 = 402,653,184
# Backward: 2 x 2,539,126,784 + 2 x 402,653,184. Recomputed: forward - 123,207,680
FLOPS_FULL = {
    "forward": 2_941_779_968,
    "backward": 5_883_559_936,
    "recomputation": 2_818_572_288,
}

# 923,590 rows of 800 characters x 0.5 tokens, two epochs: 738,872,000 tokens.
STUDY: dict[str, Any] = {"tokens": 369_436_000, "epochs": 2.0, "max_steps": -1}


@pytest.mark.parametrize(
    ("name", "parameters", "tunable", "items", "work"),
    [
        ("polyglot-ko-12.8b-lora", P_LORA, A_LORA, MEMORY_LORA, FLOPS_LORA),
        ("polyglot-ko-1.3b-full", P_FULL, P_FULL, MEMORY_FULL, FLOPS_FULL),
    ],
)
def test_memory_and_arithmetic(
    name: str, parameters: int, tunable: int, items: dict[str, int], work: dict[str, int]
) -> None:
    """Parameters, each item of memory and each part of the arithmetic are those on paper."""
    recipe = load(name)
    shapes, setup = shapes_of(table("bases.toml")[recipe.base]["config"]), setup_of(recipe)
    assert (shapes.parameters, trainable(shapes, setup)) == (parameters, tunable)
    assert memory(shapes, setup) == items | {"total": sum(items.values())}
    assert flops(shapes, setup) == work | {"total": sum(work.values())}


def test_time_of_lora_on_eight_a100s() -> None:
    """The 12.8B recipe on 8 A100s takes the paper's 18.47 hours and 296 dollars.

    312e12 x 0.40 x 0.95 (DDP) x 8 = 948.48e12 FLOP/s; / 83,663,257,600 = 11,336.9 places a second;
    x 0.98 filled = 11,110.1 tokens; 738,872,000 / 11,110.1 = 66,504 s = 18.473 h; x 8 x 2.00 USD.
    A step is 8 x 8,192 x 4 x 0.98 = 256,901.12 tokens: 2,877 steps.
    """
    (machine,) = plan(load("polyglot-ko-12.8b-lora"), (8,), ("a100-80",))["machines"]
    line = machine["cost"]
    assert line["tokens_per_second"] == pytest.approx(11_110.1, rel=1e-5)
    assert line["tokens"] == 738_872_000
    assert line["hours"] == pytest.approx(18.473, rel=1e-4)
    assert line["price"] == pytest.approx(295.57, rel=1e-4)
    assert line["steps"] == 2_877


def test_time_of_full_tuning_on_one_h100() -> None:
    """The 1.3B recipe on one H100 takes the paper's 7.70 hours and 23.1 dollars.

    989.4e12 x 0.32 = 316.608e12 FLOP/s; / 11,643,912,192 = 27,190.8 places a second; x 0.98 = 26,647.0
    tokens; 738,872,000 / 26,647.0 = 27,728 s = 7.7023 h; x 3.00 USD.
    """
    recipe = load("polyglot-ko-1.3b-full")
    shapes, setup = shapes_of(table("bases.toml")[recipe.base]["config"]), setup_of(recipe)
    result = cost(shapes, setup, gpus()["h100"], STUDY)
    assert result["tokens_per_second"] == pytest.approx(26_647.0, rel=1e-5)
    assert result["hours"] == pytest.approx(7.7023, rel=1e-4)
    assert result["price"] == pytest.approx(23.107, rel=1e-4)


def test_sharding_by_hand() -> None:
    """FSDP over 8 GPUs keeps an eighth of the states, and the gathered root and two layers.

    Full tuning: weights 4P / 8 = 665,905,152 (no autocast copy), gradients the same, states twice that. Gathered:
    both embeddings 2 x 2 x 61,603,840 = 246,415,360; a layer is 12 h^2 + 9h = 50,350,080 parameters, two of them in
    bf16 = 201,400,320 and one's fp32 gradients = 201,400,320.
    """
    recipe = load("polyglot-ko-1.3b-full")
    shapes, setup = shapes_of(table("bases.toml")[recipe.base]["config"]), setup_of(recipe)
    sizes = memory(shapes, setup | {"gpus": 8, "strategy": "fsdp"})
    assert (sizes["weights"], sizes["gradients"], sizes["optimizer"]) == (
        665_905_152,
        665_905_152,
        1_331_810_304,
    )
    assert sizes["communication"] == 649_216_000
    buckets = memory(shapes, setup | {"gpus": 8, "strategy": "ddp"})["communication"]
    assert buckets == 5_327_241_216  # DDP: fp32 gradients once more


def test_four_bits_by_hand() -> None:
    """QLoRA packs the layers' matrices and keeps the rest in fp32.

    12,582,912,000 x (0.5 + 1/64 + 4/16,384) = 6,491,136,000; the rest P - 12,582,912,000 = 310,691,840 at 4 bytes
    = 1,242,767,360; the adapter 419,430,400.
    """
    recipe = load("polyglot-ko-12.8b-lora")
    shapes, setup = shapes_of(table("bases.toml")[recipe.base]["config"]), setup_of(recipe)
    assert memory(shapes, setup | {"method": "qlora"})["weights"] == 8_153_333_760


def test_new_tokens_by_hand() -> None:
    """Trained rows of three keys: 3 x 2 x 5,120 more parameters, and whole logits, 8,192 x 30,080 x 16 bytes."""
    recipe = load("polyglot-ko-12.8b-lora", {"template": "dolly-v2-special"})
    shapes, setup = shapes_of(table("bases.toml")[recipe.base]["config"]), setup_of(recipe)
    assert trainable(shapes, setup) == A_LORA + 30_720
    assert memory(shapes, setup)["loss"] == 3_942_645_760
