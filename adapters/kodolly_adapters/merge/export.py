"""Quantised weights in the compressed-tensors format, which vLLM reads: rounded to nearest, no calibration.

fp8: E4M3 with one scale a row ("float-quantized"; activations are quantised a token at a time).
int4: signed 4-bit in groups of 128 columns with one scale each ("pack-quantized"; activations stay).
Only the linear layers of the blocks are quantised: embeddings, norms and biases are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kodolly_adapters.errors import AdapterError
from kodolly_adapters.safetensors_io import DTYPES, Reader, Tensor

from .plan import Export, Output, Part

if TYPE_CHECKING:
    import torch

GROUP = 128  # columns of int4 that share a scale
FP8_MAX = 448.0
INT4_MAX = 7
BLOCKS = (".layers.", ".h.")


def quantised(output: Output, form: Export, ends: Sequence[str]) -> Output:
    """`output` in the parts that `form` stores; itself where it is no linear layer of a block."""
    if not _is_linear(output, ends) or (form == "int4" and output.width % GROUP):
        return output
    stem = output.name.removesuffix(".weight")
    rows, columns = output.shape
    parts: tuple[Part, ...]
    if form == "fp8":
        parts = (
            Part(f"{stem}.weight", "F8_E4M3", (rows, columns)),
            Part(f"{stem}.weight_scale", "F32", (rows, 1)),
        )
    else:
        kind = output.dtype
        parts = (
            Part(f"{stem}.weight_packed", "I32", (rows, columns // 8)),
            Part(f"{stem}.weight_scale", kind, (rows, columns // GROUP)),
            Part(f"{stem}.weight_shape", "I64", (2,)),
        )
    return replace(output, parts=parts, form=form)


def quantization_config(form: Export, outputs: Sequence[Output]) -> dict[str, Any]:
    """config.json's quantization_config. Raises AdapterError where nothing was quantised."""
    if all(output.form == "none" for output in outputs):
        raise AdapterError(
            f"--export {form}: no linear layer can be quantised (int4 needs widths in {GROUP}s)"
        )
    weights: dict[str, Any] = {"symmetric": True, "dynamic": False, "observer": "minmax"}
    activations: dict[str, Any] | None = None
    if form == "fp8":
        name = "float-quantized"
        weights |= {"num_bits": 8, "type": "float", "strategy": "channel"}
        activations = {
            "num_bits": 8, "type": "float", "symmetric": True, "dynamic": True, "strategy": "token",
        }  # fmt: skip
    else:
        name = "pack-quantized"
        weights |= {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "ignore": _ignored(outputs),
        "kv_cache_scheme": None,
        "config_groups": {"group_0": {**group, "output_activations": None}},
    }


def _ignored(outputs: Sequence[Output]) -> list[str]:
    """Linear layers that stay as they are. GPT-NeoX's head has two names."""
    kept = [
        output.name.removesuffix(".weight")
        for output in outputs
        if output.form == "none" and _is_linear(output, ())
    ]
    return ["lm_head", "embed_out", *kept]


def _is_linear(output: Output, ends: Sequence[str]) -> bool:
    return (
        output.name.endswith(".weight")
        and len(output.shape) == 2
        and output.name not in ends
        and any(mark in f".{output.name}" for mark in BLOCKS)
    )


class Packer:
    """Exact rows in, the bytes of the parts out."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.row_bytes = sum(
            part.size // output.rows for part in output.parts if part.shape != (2,)
        )

    def pack(self, exact: torch.Tensor, first: int) -> Iterator[tuple[str, int, Any]]:
        """(part, its bytes a row, its bytes) of rows from `first` on; the place is first * bytes a row.

        Raises AdapterError where the rows hold no numbers.
        """
        import torch

        values, scales = quantise(exact, self._output)
        if not bool(torch.isfinite(scales.to(torch.float32)).all()):
            raise AdapterError(f"{self._output.name}, near row {first}: its values have no scale")
        if self._output.form == "int4":
            unsigned = (values + INT4_MAX + 1).to(torch.uint8)
            values = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)  # the lower bits come first
        for part, block in zip(self._output.parts, (values, scales), strict=False):
            flat = block.contiguous().view(torch.uint8).flatten()
            yield part.name, flat.numel() // len(exact), flat.numpy()

    def rest(self) -> Iterator[tuple[str, bytes]]:
        """Parts that do not depend on the rows: int4's shape."""
        for part in self._output.parts:
            if part.dtype == "I64":
                numbers = [size.to_bytes(8, "little") for size in self._output.shape]
                yield part.name, b"".join(numbers)


def quantise(exact: torch.Tensor, output: Output) -> tuple[torch.Tensor, torch.Tensor]:
    """(values, scales) of rows: fp8 (rows, columns) and (rows, 1); int8 in [-7, 7] and (rows, groups)."""
    import torch

    kind = getattr(torch, DTYPES[output.parts[1].dtype][0])
    tiny = float(torch.finfo(kind).tiny)
    if output.form == "fp8":
        scales = (exact.abs().amax(dim=1, keepdim=True) / FP8_MAX).clamp(min=tiny)
        values = (exact / scales).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        return values, scales
    groups = exact.view(len(exact), -1, GROUP)
    scales = (groups.abs().amax(dim=2) / INT4_MAX).clamp(min=tiny).to(kind)
    steps = groups / scales.to(torch.float32).unsqueeze(2)
    numbers = steps.round_().clamp_(-INT4_MAX, INT4_MAX).to(torch.int8)
    return numbers.view(len(exact), -1), scales


def dequantised(
    output: Output, written: Mapping[str, Tensor], reader: Reader, first: int, last: int
) -> torch.Tensor:
    """Rows [first, last) of a quantised tensor as float32, from its file."""
    import torch

    def part(number: int) -> torch.Tensor:
        return reader.rows(written[output.parts[number].name], first, last)

    if output.form == "fp8":
        return part(0).to(torch.float32) * part(1).to(torch.float32)
    packed = part(0).contiguous().view(torch.uint8)
    both = torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)
    values = both.to(torch.float32) - (INT4_MAX + 1)
    scales = part(1).to(torch.float32)
    return (values.view(last - first, -1, GROUP) * scales.unsqueeze(2)).flatten(1)


def check_packed(
    output: Output, exact: Any, written: Mapping[str, Tensor], reader: Reader, first: int, last: int
) -> str:
    """What is wrong with rows of a quantised tensor, "" when each value is the nearest there is."""
    import torch

    found = dequantised(output, written, reader, first, last)
    scales = reader.rows(written[output.parts[1].name], first, last).to(torch.float32)
    if output.form == "fp8":
        # Half a step: 2^-4 of the value (three bits of fraction), or of the smallest step.
        allowed = torch.maximum(exact.abs() / 16, scales * 2.0**-10)
    else:
        allowed = (scales / 2).repeat_interleave(GROUP, dim=1)
    # The scale is rounded too: the largest value of a group may lie a little beyond the last step.
    far = (found - exact).abs() > allowed * (1 + 1e-3) + exact.abs() * 1e-3
    if not bool(far.any()):
        return ""
    row = first + int(far.any(dim=1).nonzero()[0])
    return f"{output.name}, row {row}: {int(far.sum())} values are not the nearest of {output.form}"
