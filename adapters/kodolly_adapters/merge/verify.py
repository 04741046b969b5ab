"""The merge checked by others' code, in a process of its own that gives its memory back when it ends.

Tensors, equal to the last bit: some of those that LoRA changes are merged again by PEFT itself; all that the
adapter changes otherwise, and some that it leaves alone, are made again from the files of base and adapter.
Tokens: the merged model writes greedy answers, and base and adapter under PEFT must choose the same.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from kodolly_adapters.card import CARD, config_sha256, read_card
from kodolly_adapters.errors import OutputError
from kodolly_adapters.safetensors_io import DTYPES, Reader, Tensor, checkpoint

from .adapter import Change, Lora
from .adapter_config import adapter_folders
from .arithmetic import CHUNK, MergedRows
from .greedy import compare_answers
from .plan import Dtype, Output, Plan, make_plan

# Settings of AdapterConfig that do not belong to the merge of one tensor.
WHOLE_MODEL = "base_model_name_or_path layers_to_transform exclude_modules trainable_token_indices"
DRAWN = 8  # tensors changed by LoRA; those changed otherwise are few and all compared
HINT = "--no-verify goes on without it"
TIMEOUT = 7200.0  # seconds; greedy answers of a large model on a slow CPU


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was compared and is equal. `skipped` says why no tokens were compared, "" when they were."""

    tensors: int
    rows: int
    tokens: int = 0
    ties: int = 0  # answers that part where two tokens are equally likely within rounding
    logits: float = 0.0  # rms difference of the logits as a share of their spread
    skipped: str = ""

    def lines(self) -> list[str]:
        """For people."""
        text = (
            f"verified: {self.rows:,} rows of {self.tensors:,} tensors are right to the last bit: what LoRA alone "
            "changes by PEFT's own merge, the rest by the files of base and adapter"
        )
        if self.skipped:
            return [text, f"greedy tokens not compared: {self.skipped}"]
        tie = f" ({self.ties} answers part at a tie within rounding)" if self.ties else ""
        tokens = (
            f"verified: {self.tokens:,} greedy tokens of base + adapter and merged are equal{tie}; "
            f"logits differ by {self.logits:.2e} of their spread"
        )
        return [text, tokens]


def verify(plan: Plan, out: Path, seed: str) -> Verdict:
    """Check the merged files in `out` in a process of its own; `seed` draws the tensors.

    Raises OutputError naming the tensor or the prompt that differs.
    """
    arguments = [str(plan.base.directory), str(plan.adapter), str(out), plan.dtype_flag, seed]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-W", "ignore", "-m", __name__, *arguments]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT, env=env, check=False
        )
    except subprocess.TimeoutExpired:
        raise OutputError(f"{out}: the check took more than {TIMEOUT:,.0f} s. {HINT}") from None
    if child.returncode != 0:
        tail = (child.stderr.strip().splitlines() or ["it was killed: out of memory?"])[-1]
        raise OutputError(f"{out}: the check ended with an error: {tail}. {HINT}")
    answer = json.loads(child.stdout.strip().splitlines()[-1])
    if fault := answer.get("fault"):
        raise OutputError(f"{out}: the check found a fault: {fault}")
    return Verdict(**answer)


def judge(base: Path, adapter: Path, out: Path, dtype: Dtype, seed: str) -> Verdict:
    """The comparison itself. Raises OutputError saying what differs."""
    plan = make_plan(base, adapter, dtype)
    tensors = checkpoint(out).tensors
    _check_base(plan)
    _check_layout(plan, tensors)
    chance = random.Random(seed)
    outputs = _drawn(plan, chance)
    with Reader() as reader:
        rows = sum(_check_rows(plan, one, tensors[one.name], reader, chance) for one in outputs)
    return Verdict(len(outputs), rows, **compare_answers(plan, out))


def _check_base(plan: Plan) -> None:
    """Raise OutputError where training wrote down another config of its base than this one's."""
    from transformers import AutoConfig

    sources = [read_card(folder).get("source") for folder in adapter_folders(plan.adapter)]
    base_hash = next((s.get("base_config_sha256") for s in sources if isinstance(s, dict)), None)
    if base_hash is None:
        return
    config = AutoConfig.from_pretrained(str(plan.base.directory), trust_remote_code=False)
    if config_sha256(config) != base_hash:
        raise OutputError(
            f"{plan.adapter} was trained on a base of another config than {plan.base.directory} "
            f"({CARD}: base_config_sha256). Give that base; or --no-verify, where only the version "
            "of transformers is another"
        )


def _check_layout(plan: Plan, tensors: dict[str, Tensor]) -> None:
    """Raise OutputError where the files hold other tensors than planned, or of another dtype or shape."""
    planned = {(o.name, o.target.dtype, o.target.shape) for o in plan.outputs}
    if odd := sorted(planned ^ {(t.name, t.dtype, t.shape) for t in tensors.values()}):
        raise OutputError(f"{odd[0][0]} is missing, left over or of another shape")


def _drawn(plan: Plan, chance: random.Random) -> list[Output]:
    """The tensors to compare: some changed by LoRA, all changed otherwise, some copies."""
    by_lora = [output for output in plan.outputs if output.change and output.change.lora]
    otherwise = [output for output in plan.outputs if output.change and not output.change.lora]
    copies = [output for output in plan.outputs if output.is_copy]
    first, last = (chance.sample(some, min(DRAWN, len(some))) for some in (by_lora, copies))
    return [*first, *otherwise, *last]


def _check_rows(
    plan: Plan, output: Output, tensor: Tensor, reader: Reader, chance: random.Random
) -> int:
    """Compare some rows of one tensor and return how many. Raises OutputError naming the first that differs."""
    import torch

    change = output.change or Change()
    count = min(tensor.rows, max(16, CHUNK // max(1, tensor.width)))
    first = chance.randint(0, tensor.rows - count)
    if change.tokens is not None:  # the rows must hold some of the trained tokens
        first = max(first, max(change.tokens[0]) + 1 - count)
    last = first + count
    if change.lora is not None and not change.tokens:
        expected: Any = _peft_rows(plan, output, change.lora, slice(first, last), reader)
        expected = expected.to(getattr(torch, DTYPES[tensor.dtype][0]))
    else:
        expected = MergedRows(output, reader).rows(first, last).clone()
    rows = reader.rows(tensor, first, last)
    unequal = (rows != expected) & ~(rows.isnan() & expected.isnan())
    if bool(unequal.any()):
        row = first + int(unequal.any(dim=1).nonzero()[0])
        raise OutputError(
            f"{output.name}, row {row}: {int(unequal.sum())} of {rows.numel()} values differ"
        )
    return count


def _peft_rows(plan: Plan, output: Output, lora: Lora, rows: slice, reader: Reader) -> Any:
    """PEFT's own merge, in float32, of a model that has nothing but these rows, at their place in its modules."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    start = reader.rows(output.source, rows.start, rows.stop).to(torch.float32, copy=True)
    count, width = start.shape
    model: Any
    if lora.layout == "embedding":
        model = torch.nn.Embedding(count, width)
    elif lora.layout == "conv1d":
        model = Conv1D(width, count)
    else:
        model = torch.nn.Linear(width, count, bias=False)
    model.weight.data = start
    path = output.name.removesuffix(".weight")
    settings = msgspec.structs.asdict(plan.adapter_config) | {"target_modules": [path]}
    for key in WHOLE_MODEL.split():
        del settings[key]
    for name in reversed(path.split(".")):
        parent = torch.nn.Module()
        parent.add_module(name, model)
        model = parent
    wrapped: Any = get_peft_model(model, LoraConfig(**settings))
    layer = wrapped.get_submodule(f"base_model.model.{path}")
    a, b = reader.whole(lora.a), reader.whole(lora.b)
    with torch.no_grad():
        if lora.layout == "embedding":
            layer.lora_embedding_A["default"].copy_(a[:, rows])
            layer.lora_embedding_B["default"].copy_(b)
        else:
            conv1d = lora.layout == "conv1d"
            layer.lora_A["default"].weight.copy_(a[:, rows] if conv1d else a)
            layer.lora_B["default"].weight.copy_(b if conv1d else b[rows])
        if lora.magnitude is not None:
            magnitude = reader.whole(lora.magnitude).flatten()[rows]
            layer.lora_magnitude_vector["default"].weight.copy_(magnitude)
    return wrapped.merge_and_unload().get_submodule(path).weight.detach()


if __name__ == "__main__":
    _base, _adapter, _out, _dtype, _seed = sys.argv[1:]
    _flag: Any = _dtype
    try:
        _answer = asdict(judge(Path(_base), Path(_adapter), Path(_out), _flag, _seed))
    except OutputError as error:
        _answer = {"fault": str(error)}
    sys.stdout.write(json.dumps(_answer) + "\n")
