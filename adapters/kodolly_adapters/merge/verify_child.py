"""The checking process of verify.py: reads its wish as JSON on stdin, writes the verdict on stdout."""

from __future__ import annotations

import json
import random
import resource
import sys
from pathlib import Path
from typing import Any

from .arithmetic import CHUNK, Rows
from .plan import Output, Plan, plan
from .tensors import DTYPES, Reader, checkpoint
from .words import CARD, adapter_places, read_object

DRAWN = 8  # tensors changed by LoRA; those changed otherwise are few and all looked at


class Differs(Exception):
    """The merged files are not what they should be; the text is meant for people."""


def main() -> int:
    """Check what stdin asks for; the exit status is 0 also where something differs."""
    sys.stdout.write(json.dumps(judge(json.load(sys.stdin))) + "\n")
    return 0


def judge(wish: dict[str, Any]) -> dict[str, Any]:
    """The verdict on a wish of verify.py; "fault" in it says what differs."""
    known = plan(Path(wish["base"]), Path(wish["adapter"]), wish["dtype"], wish["export"])
    out = Path(wish["out"])
    answer: dict[str, Any] = {
        "tensors": 0, "rows": 0, "tokens": 0, "ties": 0, "logits": 0.0, "skipped": "",
    }  # fmt: skip
    try:
        _check_base(known)
        answer |= _tensors(known, out, random.Random(wish["seed"]))
        if known.export != "none":
            answer["skipped"] = f"{known.export} weights answer differently by design"
        else:
            from .greedy import compare

            answer |= compare(known, out)
    except Differs as fault:
        answer["fault"] = str(fault)
    answer["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return answer


def _check_base(known: Plan) -> None:
    """Compare the base's config with the one that training wrote down, where it did."""
    from transformers import AutoConfig

    from kodolly_adapters.card import config_sha256

    sources = [read_object(place / CARD).get("source") for place in adapter_places(known.adapter)]
    recorded = next((s.get("base_config_sha256") for s in sources if isinstance(s, dict)), None)
    if recorded is None:
        return
    config = AutoConfig.from_pretrained(str(known.base.directory), trust_remote_code=False)
    if config_sha256(config) != recorded:
        raise Differs(
            f"{known.adapter} was trained on a base of another config than {known.base.directory} "
            f"({CARD}: base_config_sha256). Give that base; or --no-verify, where only the version "
            "of transformers is another"
        )


def _tensors(known: Plan, out: Path, chance: random.Random) -> dict[str, int]:
    changed = [output for output in known.outputs if output.change is not None]
    by_lora = [output for output in changed if output.change and output.change.lora]
    drawn = chance.sample(by_lora, min(DRAWN, len(by_lora)))
    drawn += [output for output in changed if output not in by_lora]
    same = [output for output in known.outputs if output.is_copy]
    drawn += chance.sample(same, min(DRAWN, len(same)))
    written = checkpoint(out)
    wanted = {part.name: (part.dtype, part.shape) for o in known.outputs for part in o.parts}
    there = {name: (tensor.dtype, tensor.shape) for name, tensor in written.tensors.items()}
    if wanted != there:
        odd = sorted(set(wanted.items()) ^ set(there.items()))
        raise Differs(f"{odd[0][0]} is missing, left over or of another shape")
    count = 0
    with Reader() as reader:
        for output in drawn:
            count += _check(known, output, written.tensors, reader, chance)
    return {"tensors": len(drawn), "rows": count}


def _check(known: Plan, output: Output, written: Any, reader: Reader, chance: random.Random) -> int:
    """Compare some rows of one tensor; returns how many."""
    import torch

    many = min(output.rows, max(16, CHUNK // max(1, output.width)))
    first = chance.randint(0, output.rows - many)
    last = first + many
    if output.change is not None and output.change.tokens is not None:
        ids = output.change.tokens[0]  # the window must hold some of them
        last = min(output.rows, max(last, max(ids) + 1))
        first = max(0, last - many)
    expected = expected_rows(known, output, first, last, reader)
    if output.form != "none":
        from .export import check_packed

        if fault := check_packed(output, expected, written, reader, first, last):
            raise Differs(fault)
        return last - first
    kind = getattr(torch, DTYPES[output.dtype][0])
    expected = expected.to(kind)
    found = reader.rows(written[output.name], first, last)
    unequal = (found != expected) & ~(found.isnan() & expected.isnan())
    if bool(unequal.any()):
        row = first + int(unequal.any(dim=1).nonzero()[0])
        raise Differs(
            f"{output.name}, row {row}: {int(unequal.sum())} of {found.numel()} values differ"
        )
    return last - first


def expected_rows(known: Plan, output: Output, first: int, last: int, reader: Reader) -> Any:
    """Rows [first, last) before rounding, in float32, with PEFT's arithmetic where there is LoRA."""
    if output.change is None or output.change.lora is None or output.change.tokens is not None:
        return Rows(output, reader).exact(first, last)[0].clone()
    return peft_rows(known, output, first, last, reader)


def peft_rows(known: Plan, output: Output, first: int, last: int, reader: Reader) -> Any:
    """PEFT's own merge of a model that is nothing but these rows, at their place in the module tree."""
    import torch
    from peft import LoraConfig, get_peft_model

    lora = output.change.lora if output.change is not None else None
    assert lora is not None
    start = reader.rows(output.source, first, last).to(torch.float32, copy=True)
    module = output.name.removesuffix(".weight")
    layer = _layer(lora.layout, start)
    settings = known.settings
    alpha: Any = settings.alpha  # PEFT says int and takes any number
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        rank_pattern=dict(settings.rank_pattern),
        alpha_pattern=dict(settings.alpha_pattern),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
        fan_in_fan_out=settings.conv1d,
        target_modules=[module],
    )
    wrapped: Any = get_peft_model(_nested(module, layer), config)
    found = wrapped.get_submodule(f"base_model.model.{module}")
    a, b = reader.whole(lora.a), reader.whole(lora.b)
    with torch.no_grad():
        if lora.layout == "embedding":
            found.lora_embedding_A["default"].copy_(a[:, first:last])
            found.lora_embedding_B["default"].copy_(b)
        else:
            rows = slice(first, last)
            columns = lora.layout == "conv1d"
            found.lora_A["default"].weight.copy_(a[:, rows] if columns else a)
            found.lora_B["default"].weight.copy_(b if columns else b[rows])
        if lora.magnitude is not None:
            magnitude = reader.whole(lora.magnitude).flatten()[first:last]
            found.lora_magnitude_vector["default"].weight.copy_(magnitude)
    merged = wrapped.merge_and_unload()
    return merged.get_submodule(module).weight.detach()


def _layer(layout: str, weight: Any) -> Any:
    import torch

    rows, width = weight.shape
    if layout == "embedding":
        layer: Any = torch.nn.Embedding(rows, width)
    elif layout == "conv1d":
        from transformers.pytorch_utils import Conv1D

        layer = Conv1D(width, rows)
    else:
        layer = torch.nn.Linear(width, rows, bias=False)
    layer.weight.data = weight
    return layer


def _nested(path: str, layer: Any) -> Any:
    """A model whose only layer lies at the dotted `path`."""
    import torch

    *parents, last = path.split(".")
    root = place = torch.nn.Module()
    for name in parents:
        inner = torch.nn.Module()
        place.add_module(name, inner)
        place = inner
    place.add_module(last, layer)
    return root


if __name__ == "__main__":
    sys.exit(main())
