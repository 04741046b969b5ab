"""What the merged model's files will hold, known before the first byte is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kodolly_adapters.errors import AdapterError, BaseError
from kodolly_adapters.safetensors_io import DTYPES, FLOATS, Checkpoint, Reader, Tensor, checkpoint

from .adapter import Change, changes
from .settings import Settings, settings

Dtype = Literal["same", "fp32", "bf16", "fp16"]
Export = Literal["none", "fp8", "int4"]
TARGETS = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
INPUTS = ("embed_in.weight", "embed_tokens.weight", "wte.weight")
OUTPUTS = ("embed_out.weight", "lm_head.weight")
# Buffers of old checkpoints: never cast; transformers computes them anew in float32.
BUFFERS = ("inv_freq", "masked_bias")


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of an output file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype][1]


@dataclass(frozen=True, slots=True)
class Output:
    """One tensor of the merged model. `parts` is what is stored: itself, or its quantised form.

    `source` has the rows it starts from; None `change` keeps them.
    """

    name: str
    shape: tuple[int, ...]
    source: Tensor
    change: Change | None
    parts: tuple[Part, ...]
    form: Export = "none"

    @property
    def dtype(self) -> str:
        """Of the first part."""
        return self.parts[0].dtype

    @property
    def rows(self) -> int:
        """Length of the first dimension; 1 of a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def width(self) -> int:
        """Elements of a row."""
        return math.prod(self.shape[1:])

    @property
    def is_copy(self) -> bool:
        """Whether its bytes are the source's."""
        same = self.source.dtype == self.dtype and self.source.shape == self.shape
        return self.change is None and self.form == "none" and same


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file."""

    file: str
    outputs: tuple[Output, ...]
    metadata: Mapping[str, str]

    def parts(self) -> list[Part]:
        """Its tensors in the order of their bytes: wide ones first, which keeps all aligned."""
        found = [part for output in self.outputs for part in output.parts]
        return sorted(found, key=lambda part: -DTYPES[part.dtype][1])

    def header(self) -> tuple[bytes, dict[str, int]]:
        """(the file's first bytes, the place of each part in the file)."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt", **self.metadata}}
        start, places = 0, {}
        for part in self.parts():
            entries[part.name] = {
                "dtype": part.dtype,
                "shape": list(part.shape),
                "data_offsets": [start, start + part.size],
            }
            places[part.name] = start
            start += part.size
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        head = len(text).to_bytes(8, "little") + text
        return head, {name: len(head) + place for name, place in places.items()}

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(part.size for output in self.outputs for part in output.parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """A merge, ready to be written. `tied`: one tensor is both embeddings."""

    base: Checkpoint
    adapter: Path
    settings: Settings
    config: dict[str, Any]
    shards: tuple[Shard, ...]
    vocabulary: int
    tied: bool
    flag: Dtype  # --dtype as asked for
    dtype: str  # safetensors' name of most weights' dtype
    export: Export

    @property
    def outputs(self) -> list[Output]:
        """All output tensors."""
        return [output for shard in self.shards for output in shard.outputs]

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(shard.size for shard in self.shards)


def plan(base: Path, adapter: Path, dtype: Dtype = "same", export: Export = "none") -> Plan:
    """What merging `adapter` into `base` will write.

    Raises BaseError and AdapterError naming what does not fit, and what to do.
    """
    config = read_config(base)
    weights = checkpoint(base)
    known = settings(adapter, str(config.get("model_type", "")))
    found = changes(adapter, known, weights)
    embedding, head = _ends(weights, found)
    sources = dict(weights.tensors)
    tied = _tie(config, sources, found, embedding, head)
    outputs = {
        name: _output(name, tensor, found.get(name), dtype, base)
        for name, tensor in sources.items()
    }
    vocabulary = _vocabulary(outputs, embedding, head, config)
    if export != "none":
        from .export import quantised

        outputs = {
            name: quantised(output, export, (embedding, head)) for name, output in outputs.items()
        }
    return Plan(
        base=weights,
        adapter=adapter,
        settings=known,
        config=config,
        shards=_shards(weights, outputs),
        vocabulary=vocabulary,
        tied=tied,
        flag=dtype,
        dtype=_dtype(outputs),
        export=export,
    )


def read_config(base: Path) -> dict[str, Any]:
    """The base's config.json. Raises BaseError."""
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseError(f"{base}: no model directory: {error}") from None
    if not isinstance(config, dict):
        raise BaseError(f"{base / 'config.json'}: no JSON object")
    if config.get("quantization_config"):
        raise BaseError(
            f"{base}: is quantised. Merge into the model it was quantised from; "
            "--export quantises afterwards"
        )
    return config


def _ends(weights: Checkpoint, found: Mapping[str, Change]) -> tuple[str, str]:
    """Names of the input and the output embedding; "" where there is none."""
    embedding = next((name for name in weights.tensors if name.endswith(INPUTS)), "")
    names = [*weights.tensors, *found]
    head = next((name for name in names if name in OUTPUTS), "")
    if embedding and not head:
        head = OUTPUTS[0] if embedding.startswith("gpt_neox.") else OUTPUTS[1]
    return embedding, head


def _tie(
    config: Mapping[str, Any],
    sources: dict[str, Tensor],
    found: dict[str, Change],
    embedding: str,
    head: str,
) -> bool:
    """Whether the merged model's embeddings are one tensor; adds a head's source where they part.

    A model stays tied as long as the adapter means the same for both ends. PEFT's own merge keeps
    one tensor where the adapter changes one end only, and so changes the other end unasked.
    """
    if not embedding:
        return False
    own_head = sources.get(head)
    tied = own_head is None or (
        bool(config.get("tie_word_embeddings")) and _equal(own_head, sources[embedding])
    )
    if not tied:
        return False
    first, second = found.get(embedding), found.get(head)
    if _agree(first, second, sources[embedding]):
        shared = first or second
        found.pop(head, None)
        if shared is not None:
            found[embedding] = shared
            if own_head is not None:
                found[head] = shared
        return True
    if own_head is None:
        sources[head] = sources[embedding]
    return False


def _agree(first: Change | None, second: Change | None, source: Tensor) -> bool:
    if first is None and second is None:
        return True
    if first is None or first.lora is not None:
        return False
    resized = first.replaced is not None and first.replaced.shape != source.shape
    if second is None:
        return first.replaced is None or resized
    return (
        second.lora is None
        and _same(first.replaced, second.replaced)
        and (second.tokens is None or _same_tokens(first, second))
    )


def _same_tokens(first: Change, second: Change) -> bool:
    if first.tokens is None or second.tokens is None:
        return first.tokens is second.tokens
    return first.tokens[0] == second.tokens[0] and _equal(first.tokens[1], second.tokens[1])


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return _equal(first, second)


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same bytes, read piece by piece."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    step = max(1, (1 << 20) // max(1, first.width))
    with Reader() as one, Reader() as other:
        return all(
            bool((one.rows(first, row, last) == other.rows(second, row, last)).all())
            for row in range(0, first.rows, step)
            for last in (min(row + step, first.rows),)
        )


def _output(name: str, source: Tensor, change: Change | None, dtype: Dtype, base: Path) -> Output:
    start = source
    if change is not None and change.replaced is not None:
        start = change.replaced
    rows = max(start.rows, change.rows if change is not None else 0)
    shape = (rows, *start.shape[1:]) if start.shape else ()
    if change is not None and change.tokens is not None:
        if lost := set(range(start.rows, rows)) - set(change.tokens[0]):
            raise AdapterError(
                f"{name} of {base} has {start.rows:,} rows and the adapter trains token {rows - 1:,}, "
                f"but nothing holds row {min(lost):,}: train from a base that is resized and saved first"
            )
        if change.tokens[1].shape[1:] != shape[1:]:
            raise AdapterError(f"{change.tokens[1].name}: rows of {change.tokens[1].width}")
    if change is not None and change.lora is not None and change.lora.shape != shape:
        raise AdapterError(f"{name} of {base} is {shape}; the adapter's is {change.lora.shape}")
    kind = source.dtype
    if dtype != "same" and kind in FLOATS and not name.endswith(BUFFERS):
        kind = TARGETS[dtype]
    return Output(name, shape, start, change, (Part(name, kind, shape),))


def _vocabulary(
    outputs: Mapping[str, Output], embedding: str, head: str, config: Mapping[str, Any]
) -> int:
    rows = {name: outputs[name].rows for name in (embedding, head) if name in outputs}
    if len(set(rows.values())) > 1:
        text = " and ".join(f"{name} {count:,}" for name, count in rows.items())
        raise AdapterError(f"the merged model would have {text} rows: one end was not resized")
    return next(iter(rows.values()), int(config.get("vocab_size", 0)))


def _shards(weights: Checkpoint, outputs: Mapping[str, Output]) -> tuple[Shard, ...]:
    """The base's files again; a head that parts from its embedding goes into the last."""
    by_file: dict[str, list[Output]] = {file: [] for file in weights.files}
    for name, tensor in sorted(weights.tensors.items(), key=lambda item: item[1].start):
        by_file[tensor.path.name].append(outputs[name])
    for name in sorted(set(outputs) - set(weights.tensors)):
        by_file[weights.files[-1]].append(outputs[name])
    return tuple(Shard(file, tuple(found), weights.metadata) for file, found in by_file.items())


def _dtype(outputs: Mapping[str, Output]) -> str:
    sizes: dict[str, int] = {}
    for output in outputs.values():
        kind = output.dtype if output.form == "none" else output.source.dtype
        if kind in FLOATS:
            sizes[kind] = sizes.get(kind, 0) + math.prod(output.shape)
    return max(sizes, key=lambda kind: sizes[kind], default="F32")
