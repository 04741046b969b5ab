"""Every kind of adapter on both architectures: equal to PEFT's merge in float32, rounded once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.merge_cases import IDS, VARIANTS, load, make_adapter, tensors

from kodolly_adapters.merge.plan import Dtype
from kodolly_adapters.merge.run import merge

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' about their own future

CASES = [
    (arch, tied, name)
    for name, variant in VARIANTS.items()
    for arch in ("neox", "llama")
    for tied in (False, True)
    if variant.only in ("", arch)
]
DTYPES: dict[Dtype, str] = {"same": "float16", "fp32": "float32", "bf16": "bfloat16"}
ALL_DTYPES = ("lora", "dora", "tokens")  # the others: the base's own
# rms difference of the logits from base + adapter, as a share of their spread
ALLOWED = {"same": 5e-3, "fp32": 1e-5, "bf16": 4e-2}


@pytest.mark.parametrize(("arch", "tied", "name"), CASES)
def test_merged_weights_are_the_float32_reference_rounded(
    arch: str, tied: bool, name: str, bases: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    """All tensors equal PEFT's float32 merge to the last bit after one rounding, and so do the answers."""
    import torch

    variant, base = VARIANTS[name], bases[arch, tied]
    adapted = make_adapter(tmp_path / "adapter", base, arch, variant, tied=tied)
    for flag, kind in DTYPES.items():
        if flag != "same" and name not in ALL_DTYPES:
            continue
        out = tmp_path / flag
        merge(base, adapted.directory, out, dtype=flag, check=False, quiet=True)
        merged = tensors(out)
        if not (tied and variant.splits_tied):
            _assert_same(merged, adapted.weights, getattr(torch, kind))
        model = load(out)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(IDS)).logits
        assert logits.shape == adapted.logits.shape
        share = float((logits - adapted.logits).pow(2).mean().sqrt() / adapted.logits.std())
        assert share < ALLOWED[flag], f"{flag}: {share}"
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    assert config["vocab_size"] == variant.rows
    assert config["dtype"] == config["torch_dtype"] == "float16"


def _assert_same(merged: dict[str, Any], expected: dict[str, Any], kind: Any) -> None:
    """`merged` may leave out the head of a tied model."""
    import torch

    heads = {"lm_head.weight", "embed_out.weight"}
    assert set(expected) - heads <= set(merged) <= set(expected)
    for key, value in merged.items():
        assert value.dtype == kind, key
        assert torch.equal(value, expected[key].to(kind)), key
