"""The model: loaded from a directory, run on a part of one prompt or on one token of many rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kodolly.engines.transformers.cache import CacheShape, SlotCache
from kodolly.errors import EngineStartError

log = logging.getLogger(__name__)

FAST_BF16 = ("amx_bf16", "avx512_bf16")  # CPU features that compute in bfloat16


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What to load and how. `__main__` has flags of the same names."""

    directory: Path
    max_model_len: int | None = None
    max_num_seqs: int = 8
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    # Sampling parameters for requests that do not set them, over those of generation_config.json.
    defaults: dict[str, Any] = field(default_factory=dict)


class Model:
    """A causal language model with a slot cache. For one thread only."""

    def __init__(self, network: Any, slots: int, longest: int) -> None:
        config = network.config
        self._network = network
        self.longest = longest
        self.vocabulary = int(network.get_output_embeddings().weight.shape[0])
        self.cache = SlotCache(
            _cache_shape(config), slots, longest, network.get_output_embeddings().weight
        )

    def prefill(self, row: int, start: int, ids: list[int], *, every: bool = False) -> Any:
        """Runs `ids` in one row from position `start`; the last one's logits (V,) in float32.

        `every`: the logits of all of them, (N, V).
        """
        import torch

        device, end = self._network.device, start + len(ids)
        self.cache.reserve(end)
        self.cache.aim_chunk(row, start, len(ids))
        positions = torch.arange(start, end, device=device)
        mask = torch.arange(end, device=device)[None, :] <= positions[:, None]
        tokens = torch.tensor([ids], device=device)
        logits = self._forward(tokens, positions[None], mask[None, None], 0 if every else 1)[0]
        return logits if every else logits[-1]

    def decode(self, tokens: list[int], positions: list[int]) -> Any:
        """Runs one token for each of the first rows; logits (B, V) in float32."""
        import torch

        device, longest = self._network.device, max(positions) + 1
        self.cache.reserve(longest)
        places = torch.tensor(positions, device=device)
        self.cache.aim_batch(places, longest)
        mask = torch.arange(longest, device=device)[None, :] <= places[:, None]
        ids = torch.tensor(tokens, device=device)
        return self._forward(ids[:, None], places[:, None], mask[:, None, None], 1)[:, -1]

    def _forward(self, ids: Any, positions: Any, mask: Any, keep: int) -> Any:
        """Logits (B, q, V). `mask`: (B, 1, q, kv), true where a query may attend.

        `keep`: of how many last positions; 0: of all.
        """
        import torch

        with torch.inference_mode():
            out = self._network(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=self.cache,
                use_cache=True,
                logits_to_keep=keep,
            )
            return out.logits.float()


def load(options: ModelOptions) -> Model:
    """Loads a model directory: only safetensors, without running code from it, without network.

    Raises EngineStartError if the directory, the device or the architecture cannot be used.
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
    except EngineStartError:
        raise
    except Exception as error:  # files that are not what they say raise anything
        log.debug("cannot load %s", options.directory, exc_info=error)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise EngineStartError(f"cannot load {options.directory}: {reason}") from error
    return Model(
        network, options.max_num_seqs, context_length(config.to_dict(), options.max_model_len)
    )


def context_length(config: Mapping[str, Any], max_model_len: int | None) -> int:
    """Tokens that prompt and answer may have together: `max_model_len`, else the model's own limit.

    `config`: the content of config.json. Raises EngineStartError for more than the model's limit.
    """
    most = int(config.get("max_position_embeddings") or 0)
    if max_model_len and most and max_model_len > most:
        raise EngineStartError(
            f"--max-model-len {max_model_len} is over the model's {most} positions"
        )
    return max_model_len or most or 2048


def default_threads() -> int:
    """OMP_NUM_THREADS, else the number of cores that this process may use."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > 0:
        return int(threads)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def _cache_shape(config: Any) -> CacheShape:
    heads = config.num_attention_heads
    return CacheShape(
        layers=config.num_hidden_layers,
        heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _refuse_partial_attention(config: Any) -> None:
    """Raises EngineStartError for layers that attend to a part of the text: all share one mask here."""
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or getattr(config, "sliding_window", None):
        raise EngineStartError(
            f"{config.model_type} has layers without full attention: use the vllm engine for it"
        )


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype(options: ModelOptions) -> Any:
    """`options.dtype`; `auto`: the model's own, but float32 on a CPU without fast bfloat16."""
    import torch

    if options.dtype != "auto":
        return getattr(torch, options.dtype)
    if _device(options.device) == "cpu" and not cpu_has_fast_bf16():
        return torch.float32
    return "auto"


def cpu_has_fast_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU computes in bfloat16; only known for x86 on Linux, False elsewhere."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return any(flag in flags for flag in FAST_BF16)
