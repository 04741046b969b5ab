"""The model itself: loaded from a directory, run on a chunk of one row or a token of many."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kodolly.engines.transformers.cache import CacheShape, SlotCache
from kodolly.errors import EngineStartError

FAST_BF16 = ("amx_bf16", "avx512_bf16")  # CPU features without which bfloat16 is emulated


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What to load and how: see `__main__` for the flags of the same names."""

    directory: Path
    max_model_len: int | None = None
    max_num_seqs: int = 8
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    # Sampling that a request leaves open, from generation_config.json.
    defaults: dict[str, Any] = field(default_factory=dict)


class Model:
    """A causal language model over a slot cache. Used by one thread only."""

    def __init__(self, network: Any, slots: int, longest: int) -> None:
        config = network.config
        self._network = network
        self.longest = longest
        self.vocabulary = int(network.get_output_embeddings().weight.shape[0])
        self.cache = SlotCache(
            _cache_shape(config), slots, longest, network.get_output_embeddings().weight
        )

    def prefill(self, row: int, start: int, ids: list[int]) -> Any:
        """Run `ids` of one row from position `start`; logits (V,) in float32 after the last."""
        import torch

        device, end = self._network.device, start + len(ids)
        self.cache.reserve(end)
        self.cache.aim_chunk(row, start, len(ids))
        positions = torch.arange(start, end, device=device)
        mask = torch.arange(end, device=device)[None, :] <= positions[:, None]
        tokens = torch.tensor([ids], device=device)
        return self._forward(tokens, positions[None], mask[None, None])[0]

    def decode(self, tokens: list[int], positions: list[int]) -> Any:
        """Run one token for each of the first rows; logits (B, V) in float32."""
        import torch

        device, longest = self._network.device, max(positions) + 1
        self.cache.reserve(longest)
        places = torch.tensor(positions, device=device)
        self.cache.aim_batch(places, longest)
        mask = torch.arange(longest, device=device)[None, :] <= places[:, None]
        ids = torch.tensor(tokens, device=device)
        return self._forward(ids[:, None], places[:, None], mask[:, None, None])

    def _forward(self, ids: Any, positions: Any, mask: Any) -> Any:
        """`mask` is (B, 1, q, kv), true where a query may look."""
        import torch

        with torch.inference_mode():
            out = self._network(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=1,
            )
            return out.logits[:, -1].float()


def load(options: ModelOptions) -> Model:
    """Load the weights of a model directory; safetensors only, no remote code, no network.

    Raises EngineStartError when the directory, the device or the architecture will not do.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(options.threads or default_threads())
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(str(options.directory), **local)
        _refuse_partial_attention(config)
        network = AutoModelForCausalLM.from_pretrained(
            str(options.directory),
            config=config,
            dtype=_dtype(options),
            attn_implementation="sdpa",
            use_safetensors=True,
            **local,
        )
        network = network.eval().to(_device(options.device))
    except (OSError, ValueError, RuntimeError) as error:
        raise EngineStartError(f"cannot load {options.directory}: {error}") from error
    return Model(
        network, options.max_num_seqs, context_length(config.to_dict(), options.max_model_len)
    )


def context_length(config: Mapping[str, Any], wanted: int | None) -> int:
    """Tokens a row may have: what is wanted, at most what the model was made for.

    `config` is what config.json holds. Raises EngineStartError when more is wanted.
    """
    most = int(config.get("max_position_embeddings") or 0)
    if wanted and most and wanted > most:
        raise EngineStartError(f"--max-model-len {wanted} is over the model's {most} positions")
    return wanted or most or 2048


def default_threads() -> int:
    """OMP_NUM_THREADS, else the cores this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _cache_shape(config: Any) -> CacheShape:
    heads = config.num_attention_heads
    return CacheShape(
        layers=config.num_hidden_layers,
        heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _refuse_partial_attention(config: Any) -> None:
    """One mask serves all layers here, so every layer must look at the whole text."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or getattr(config, "sliding_window", None):
        raise EngineStartError(
            f"{config.model_type} has layers without full attention: use the vllm engine for it"
        )


def _device(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(options: ModelOptions) -> Any:
    """The dtype asked for; `auto` means the model's own, but float32 where bfloat16 crawls."""
    import torch

    if options.dtype != "auto":
        return getattr(torch, options.dtype)
    if _device(options.device) == "cpu" and not cpu_has_fast_bf16():
        return torch.float32
    return "auto"


def cpu_has_fast_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (x86 on Linux; elsewhere: no)."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return any(flag in flags for flag in FAST_BF16)
