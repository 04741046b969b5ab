"""A model that runs with its weights on disk: each large matrix is read in pieces at the moment it is used.

One pass reads the whole model once and holds a few MiB of it. transformers' own modules and PEFT's do the
arithmetic around; only the large matrices of linear layers and embeddings are multiplied here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from kodolly_adapters import families

from .adapter import ALIASES
from .arithmetic import pieces
from .plan import INPUTS, OUTPUTS
from .tensors import Reader, Tensor

if TYPE_CHECKING:
    import torch

PIECE = 1 << 21  # elements: 8 MiB in float32


def can_stream(config: Mapping[str, Any]) -> bool:
    """Whether the architecture is known: its modules' weights are used by calling the modules, no other way."""
    return config.get("model_type") in families.KNOWN


class Streamed:
    """The model of a config with the weights in `tensors`, as `model`; PEFT can wrap it as any other.

    Parameters that `held` names as the files do are in memory, as those are that an adapter replaces.
    """

    def __init__(
        self,
        config: Any,
        tensors: Mapping[str, Tensor],
        reader: Reader,
        held: frozenset[str] = frozenset(),
    ) -> None:
        """Raises KeyError naming a parameter that has no tensor."""
        import torch
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM

        with init_empty_weights():
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, trust_remote_code=False
            )
        self.model = model.eval()
        self._reader = reader
        self._buffer = torch.empty(0)
        self._read: dict[torch.nn.Module, Tensor] = {}
        in_memory: dict[str, torch.nn.Parameter] = {}  # tied ends stay one
        for path, module in self.model.named_modules():
            for name, old in list(module.named_parameters(recurse=False)):
                names = _names(f"{path}.{name}")
                tensor = _tensor(names, tensors)
                matrix = name == "weight" and isinstance(
                    module, (torch.nn.Linear, torch.nn.Embedding)
                )
                if matrix and not held & {*names, tensor.name}:
                    self._stream(module, tensor, old.shape)
                    continue
                if tensor.name not in in_memory:
                    in_memory[tensor.name] = self._whole(tensor, old.shape)
                setattr(module, name, in_memory[tensor.name])

    def keep_whole(self, looks: Callable[[Any], bool]) -> None:
        """Have a layer's matrix in memory while a module of PEFT's that `looks` at it runs."""
        for outer in self.model.modules():
            base = getattr(outer, "base_layer", None)
            if base is not None and base in self._read and looks(outer):
                outer.register_forward_pre_hook(partial(self._fill, base))
                outer.register_forward_hook(partial(self._empty, base, base.weight))

    def _stream(self, module: Any, tensor: Tensor, shape: torch.Size) -> None:
        import torch

        # One zero in the shape of the matrix: PEFT asks for shape, device and dtype.
        nothing = torch.zeros(1, 1).expand(shape)
        module.weight = torch.nn.Parameter(nothing, requires_grad=False)
        use = self._linear if isinstance(module, torch.nn.Linear) else self._embedding
        module.forward = partial(use, module, tensor)
        self._read[module] = tensor

    def _linear(self, module: Any, tensor: Tensor, x: torch.Tensor) -> torch.Tensor:
        import torch

        flat = x.reshape(-1, x.shape[-1])
        out = torch.zeros((flat.shape[0], module.out_features))
        # Rows beyond the file's are new tokens', all of which the adapter sets.
        for first, last in pieces(min(tensor.rows, module.out_features), tensor.width, PIECE):
            out[:, first:last] = flat @ self._piece(tensor, first, last).t()
        if module.bias is not None:
            out += module.bias
        return out.view(*x.shape[:-1], module.out_features)

    def _piece(self, tensor: Tensor, first: int, last: int) -> torch.Tensor:
        """Rows in float32, in the one buffer: an allocation a piece would leave the heap in shreds."""
        import torch

        size = (last - first) * tensor.width
        if len(self._buffer) < size:
            self._buffer = torch.empty(size)
        rows = self._buffer[:size].view(last - first, tensor.width)
        return rows.copy_(self._reader.rows(tensor, first, last))

    def _embedding(self, module: Any, tensor: Tensor, ids: torch.Tensor) -> torch.Tensor:
        import torch

        out = torch.zeros((ids.numel(), tensor.width))
        for place, token in enumerate(ids.flatten().tolist()):
            if token < tensor.rows:
                out[place] = self._reader.rows(tensor, token, token + 1)[0]
        return out.view(*ids.shape, tensor.width)

    def _whole(self, tensor: Tensor, shape: torch.Size) -> Any:
        """The tensor as a parameter; rows that the file does not have are zeros."""
        import torch

        values = torch.zeros(shape)
        rows = min(tensor.rows, shape[0])
        for first, last in pieces(rows, tensor.width, PIECE):
            values[first:last] = self._reader.rows(tensor, first, last).view(-1, *shape[1:])
        return torch.nn.Parameter(values, requires_grad=False)

    def _fill(self, base: Any, *_: Any) -> None:
        base.weight = self._whole(self._read[base], base.weight.shape)

    def _empty(self, base: Any, nothing: Any, *_: Any) -> None:
        base.weight = nothing


def _names(name: str) -> tuple[str, str]:
    """A parameter's name in transformers, and in the files where that is another."""
    module, _, leaf = name.rpartition(".")
    return name, f"{ALIASES.get(module, module)}.{leaf}"


def _tensor(names: tuple[str, str], tensors: Mapping[str, Tensor]) -> Tensor:
    """The parameter's tensor, or the input's where the head has none."""
    known = next((name for name in names if name in tensors), None)
    if known is not None:
        return tensors[known]
    if set(names) & set(OUTPUTS):
        return next(tensor for key, tensor in tensors.items() if key.endswith(INPUTS))
    raise KeyError(names[0])
