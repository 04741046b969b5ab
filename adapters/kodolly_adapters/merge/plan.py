"""What the merged model's files will hold, decided before the first byte is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kodolly_adapters.card import read_object
from kodolly_adapters.errors import AdapterError, BaseError
from kodolly_adapters.safetensors_io import (
    FLOATS,
    Checkpoint,
    Tensor,
    checkpoint,
    equal,
    new_header,
)

from .adapter import INPUTS, Change, check_fit, read_changes
from .adapter_config import AdapterConfig, read_adapter_config

Dtype = Literal["same", "fp32", "bf16", "fp16"]
STORED: dict[Dtype, str] = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}  # safetensors' names
HEADS = ("embed_out.weight", "lm_head.weight")
# Buffers of old checkpoints: never cast; transformers computes them anew in float32.
BUFFERS = ("inv_freq", "masked_bias")


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the merged model: `target` is written, from the rows of `source` and by `change` (None: none)."""

    target: Tensor
    source: Tensor
    change: Change | None

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.target.name

    @property
    def file(self) -> str:
        """The name of its file."""
        return self.target.path.name

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are the source's."""
        same = (self.source.dtype, self.source.shape) == (self.target.dtype, self.target.shape)
        return self.change is None and same


@dataclass(frozen=True, slots=True)
class Plan:
    """A merge, ready to be written."""

    base: Checkpoint
    adapter: Path
    adapter_config: AdapterConfig
    config: dict[str, Any]  # the base's config.json
    heads: dict[str, bytes]  # by file: its first bytes, before the tensors
    outputs: list[Output]  # in the order they are written
    vocabulary: int  # rows of the embeddings
    tied: bool  # one tensor is both embeddings
    dtype_flag: Dtype  # --dtype
    dtype: str  # safetensors' name of most weights' dtype

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(output.target.size for output in self.outputs)


def make_plan(base: Path, adapter: Path, dtype: Dtype = "same") -> Plan:
    """What merging `adapter` into `base` will write.

    Raises BaseError and AdapterError naming what does not fit, and what to do.
    """
    config = _read_config(base)
    weights = checkpoint(base)
    adapter_config = read_adapter_config(adapter, str(config.get("model_type", "")))
    changes = read_changes(adapter, adapter_config, weights)
    embedding, head = _ends(weights, changes)
    sources = dict(weights.tensors)
    if head in changes:  # a tied head that is in no file starts as its embedding
        sources.setdefault(head, sources[embedding])
    for name, change in changes.items():
        check_fit(name, change, sources[name], base)
    first, second = changes.get(embedding), changes.get(head)
    was_tied = bool(embedding) and (
        head not in weights.tensors
        or (config.get("tie_word_embeddings", False) and equal(sources[head], sources[embedding]))
    )
    # PEFT's own merge keeps one tensor where the adapter changes one end only, and so changes the other end unasked.
    tied = was_tied and _same_for_both(first, second, sources[embedding])
    if tied and (shared := first or second):
        changes |= {embedding: shared, head: shared}
    if tied and head not in weights.tensors:
        changes.pop(head, None)
        sources.pop(head, None)
    elif was_tied:
        sources.setdefault(head, sources[embedding])
    heads: dict[str, bytes] = {}
    outputs: list[Output] = []
    for file in weights.files:
        heads[file], in_file = _outputs(file, weights, sources, changes, dtype)
        outputs += in_file
    return Plan(
        base=weights,
        adapter=adapter,
        adapter_config=adapter_config,
        config=config,
        heads=heads,
        outputs=outputs,
        vocabulary=_vocabulary(outputs, (embedding, head), config),
        tied=tied,
        dtype_flag=dtype,
        dtype=_main_dtype(outputs),
    )


def _read_config(base: Path) -> dict[str, Any]:
    path = base / "config.json"
    if not path.is_file():
        raise BaseError(f"{base}: no model directory: it has no config.json")
    config = read_object(path)
    if config.get("quantization_config"):
        raise BaseError(
            f"{base}: is quantised. Merge into the model it was quantised from, and quantise the result"
        )
    return config


def _ends(weights: Checkpoint, changes: Mapping[str, Change]) -> tuple[str, str]:
    """Names of the input and the output embedding; "" where there is none."""
    embedding = next((name for name in weights.tensors if name.endswith(INPUTS)), "")
    head = next((name for name in (*weights.tensors, *changes) if name in HEADS), "")
    if embedding and not head:
        head = HEADS[0] if embedding.startswith("gpt_neox.") else HEADS[1]
    return embedding, head


def _same_for_both(first: Change | None, second: Change | None, embedding: Tensor) -> bool:
    """Whether changes of a tied embedding and of its head leave them equal."""
    if first is None or first.lora is not None:
        return first is second
    if second is None:
        return first.replaced is None or first.replaced.shape != embedding.shape
    if second.lora is not None or not equal(first.replaced, second.replaced):
        return False
    if first.tokens is None or second.tokens is None:
        return second.tokens is None
    return first.tokens[0] == second.tokens[0] and equal(first.tokens[1], second.tokens[1])


def _outputs(
    file: str,
    base: Checkpoint,
    sources: Mapping[str, Tensor],
    changes: Mapping[str, Change],
    dtype: Dtype,
) -> tuple[bytes, list[Output]]:
    """The head and tensors of the base's `file`, merged; the last also gets a head that parts from its embedding."""
    in_file = [tensor for tensor in base.tensors.values() if tensor.path.name == file]
    names = [tensor.name for tensor in sorted(in_file, key=lambda tensor: tensor.start)]
    if file == base.files[-1]:
        names += sorted(set(sources) - set(base.tensors))
    starts: dict[str, Tensor] = {}
    tensors = []
    for name in names:
        change = changes.get(name) or Change()
        starts[name] = change.replaced or sources[name]
        stored = sources[name].dtype
        if dtype != "same" and stored in FLOATS and not name.endswith(BUFFERS):
            stored = STORED[dtype]
        tensors.append((name, stored, _shape(name, starts[name], change, base.directory)))
    head, targets = new_header(Path(file), tensors, base.metadata)
    return head, [Output(t, starts[t.name], changes.get(t.name)) for t in targets]


def _shape(name: str, start: Tensor, change: Change, base: Path) -> tuple[int, ...]:
    """The merged tensor's shape: trained rows of new tokens make it longer."""
    if change.tokens is None:
        return start.shape
    ids = change.tokens[0]
    rows = max(start.rows, max(ids) + 1)
    if missing := set(range(start.rows, rows)) - set(ids):
        raise AdapterError(
            f"{name} of {base} has {start.rows:,} rows and the adapter trains token {rows - 1:,}, "
            f"but nothing holds row {min(missing):,}: train from a base that is resized and saved first"
        )
    return (rows, *start.shape[1:])


def _vocabulary(outputs: list[Output], ends: tuple[str, str], config: Mapping[str, Any]) -> int:
    """Rows of the embeddings. Raises AdapterError where the two ends have not the same."""
    rows = {output.name: output.target.rows for output in outputs if output.name in ends}
    if len(set(rows.values())) > 1:
        text = " and ".join(f"{name} {count:,}" for name, count in rows.items())
        raise AdapterError(f"the merged model would have {text} rows: one end was not resized")
    return next(iter(rows.values()), int(config.get("vocab_size", 0)))


def _main_dtype(outputs: list[Output]) -> str:
    """The floating dtype that holds most elements."""
    elements = Counter({"F32": 0})
    for output in outputs:
        if output.target.dtype in FLOATS:
            elements[output.target.dtype] += math.prod(output.target.shape)
    return elements.most_common(1)[0][0]
