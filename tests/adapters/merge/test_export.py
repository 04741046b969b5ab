"""--export: what vLLM would read gives the merged weights back, each value the nearest there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.merge_cases import TARGETS, tensors, verdict
from support.tiny_models import make_tiny_llama, make_tiny_neox

from kodolly_adapters.merge.plan import Export
from kodolly_adapters.merge.run import merge

pytestmark = pytest.mark.filterwarnings("ignore")
GROUP = 128


def _adapter(place: Path, base: Path, targets: list[str]) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from support.merge_cases import load

    wrapped: Any = get_peft_model(load(base), LoraConfig(r=4, target_modules=targets))
    torch.manual_seed(1)
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            value.data.normal_(0, 0.05)
    wrapped.save_pretrained(str(place), save_embedding_layers=False)
    return place


def _unpacked(found: dict[str, Any], stem: str) -> Any:
    """The weight from its int4 parts by the format's own definition: word by word, lowest bits first."""
    import torch

    packed, scale = found[f"{stem}.weight_packed"], found[f"{stem}.weight_scale"].float()
    rows, columns = found[f"{stem}.weight_shape"].tolist()
    values = torch.empty(rows, columns)
    for column in range(columns):
        word = packed[:, column // 8].to(torch.int64)
        values[:, column] = ((word >> (4 * (column % 8))) & 15).float() - 8
        values[:, column] *= scale[:, column // GROUP]
    return values


@pytest.mark.parametrize("arch", ["neox", "llama"])
@pytest.mark.parametrize("form", ["fp8", "int4"])
def test_an_export_gives_the_merged_weights_back(form: Export, arch: str, tmp_path: Path) -> None:
    """Linear layers come back within half a step; everything else is untouched; the config says how."""
    import torch

    base = (make_tiny_neox if arch == "neox" else make_tiny_llama)(tmp_path / "base")
    adapter = _adapter(tmp_path / "adapter", base, TARGETS[arch])
    merge(base, adapter, tmp_path / "plain", check=False, quiet=True)
    merge(base, adapter, tmp_path / "small", export=form, check=False, quiet=True)
    assert "fault" not in verdict(base, adapter, tmp_path / "small", form)
    plain, small = tensors(tmp_path / "plain"), tensors(tmp_path / "small")
    quantised = 0
    for name, value in plain.items():
        stem = name.removesuffix(".weight")
        if ".layers." not in name or value.ndim != 2:
            assert torch.equal(small[name], value), name
            continue
        quantised += 1
        if form == "fp8":
            assert small[name].dtype == torch.float8_e4m3fn
            back = small[name].float() * small[f"{stem}.weight_scale"]
            step = torch.maximum(value.abs() / 16, small[f"{stem}.weight_scale"] * 2.0**-10)
        else:
            back = _unpacked(small, stem)
            step = small[f"{stem}.weight_scale"].float().repeat_interleave(GROUP, dim=1) / 2
        assert bool(((back - value).abs() <= step * 1.001).all()), name
    assert quantised == 2 * len(TARGETS[arch])
    config = json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == {"fp8": "float-quantized", "int4": "pack-quantized"}[form]
    assert "lm_head" in config["ignore"]
