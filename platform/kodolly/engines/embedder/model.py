"""The encoder: token ids in, one vector a text out, as sentence-transformers' modules.json says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kodolly.engines.model_files import CONFIG, read_object
from kodolly.errors import EngineStartError, SettingsError

MODULES = "modules.json"
# Names of sentence-transformers' settings for how the outputs become one vector -> ours.
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class Recipe:
    """How vectors are made. `pooling`: cls, mean or lasttoken. `longest`: tokens of a text at most."""

    pooling: str
    normalize: bool
    longest: int
    lower_case: bool
    sizes: tuple[int, ...]  # shorter vectors that the model was trained for

    @classmethod
    def read(cls, directory: Path, max_model_len: int | None) -> Recipe:
        """The recipe of a directory. Raises EngineStartError, which names what is not known here."""
        config = read_object(directory / CONFIG)
        limits = read_object(directory / "sentence_bert_config.json")
        pooling, normalize = "mean", False
        for module in _modules(directory):
            kind = str(module.get("type", "")).rpartition(".")[2]
            if kind == "Pooling":
                pooling = _pooling(directory / str(module.get("path", "")) / CONFIG)
            elif kind == "Normalize":
                normalize = True
            elif kind != "Transformer":
                raise EngineStartError(
                    f"{directory / MODULES}: {kind} is not known to this engine: use the vllm engine"
                )
        # A RoBERTa counts positions from behind its padding token.
        offset = int(config.get("pad_token_id") or 0) + 1 if "roberta" in _type(config) else 0
        own = [limits.get("max_seq_length"), _less(config.get("max_position_embeddings"), offset)]
        most = min((int(size) for size in own if size), default=512)
        if max_model_len and max_model_len > most:
            raise EngineStartError(f"--max-model-len {max_model_len} is over the model's {most}")
        sizes = tuple(map(int, config.get("matryoshka_dimensions") or ()))
        lower_case = bool(limits.get("do_lower_case"))
        return cls(pooling, normalize, max_model_len or most, lower_case, sizes)


class Encoder:
    """A network and its tokenizer. For one thread only; `size`: numbers of a vector."""

    def __init__(self, directory: Path, recipe: Recipe, *, dtype: str, device: str) -> None:
        """Loads both. `dtype`: torch's name or auto. Raises EngineStartError."""
        from transformers import AutoModel, AutoTokenizer

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(directory), **local)
            network = AutoModel.from_pretrained(str(directory), dtype=dtype, **local)
            self._network = network.eval().to(device)
        except Exception as error:  # files that are not what they say raise anything
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise EngineStartError(f"cannot load {directory}: {reason}") from error
        self.recipe = recipe
        self.size = int(network.config.hidden_size)

    def tokens(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text. `special`: with those that the tokenizer adds itself."""
        text = text.lower() if self.recipe.lower_case else text
        ids = self.tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)
        return list(ids["input_ids"])

    def vectors(self, batch: Sequence[Sequence[int]]) -> list[list[float]]:
        """One vector for each text of a batch, in float32."""
        import torch

        longest = max(len(ids) for ids in batch)
        pad = self.tokenizer.pad_token_id or 0
        tokens = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in batch])
        lengths = torch.tensor([len(ids) for ids in batch])
        mask = (torch.arange(longest)[None] < lengths[:, None]).long()
        device = self._network.device
        tokens, mask = tokens.to(device), mask.to(device)
        with torch.inference_mode():
            states = self._network(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
            if self.recipe.pooling == "cls":
                pooled = states[:, 0]
            elif self.recipe.pooling == "lasttoken":
                pooled = states[torch.arange(len(batch)), lengths - 1]
            else:
                weights = mask[..., None].float()
                pooled = (states * weights).sum(1) / weights.sum(1)
            if self.recipe.normalize:
                pooled = torch.nn.functional.normalize(pooled, dim=-1)
        rows: list[list[float]] = pooled.cpu().tolist()
        return rows


def _modules(directory: Path) -> list[dict[str, Any]]:
    import json

    try:
        modules = json.loads((directory / MODULES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise SettingsError(f"{directory / MODULES}: cannot be read: {error}") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise SettingsError(f"{directory / MODULES}: a list of objects is expected")
    return modules


def _pooling(file: Path) -> str:
    config = read_object(file)
    modes = [name for key, name in POOLINGS.items() if config.get(key)]
    others = [key for key in config if key.startswith("pooling_mode_") and config[key]]
    if isinstance(config.get("pooling_mode"), str):
        modes, others = [config["pooling_mode"]], [config["pooling_mode"]]
    if len(modes) != 1 or len(others) != 1 or modes[0] not in POOLINGS.values():
        raise EngineStartError(f"{file}: only one of {', '.join(POOLINGS.values())} is known here")
    return str(modes[0])


def _type(config: dict[str, Any]) -> str:
    return str(config.get("model_type", ""))


def _less(size: Any, offset: int) -> int | None:
    return size - offset if isinstance(size, int) else None
