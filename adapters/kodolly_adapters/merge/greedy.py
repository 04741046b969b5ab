"""Greedy answers of base + adapter (PEFT) and of the merged model, token by token."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kodolly_adapters.safetensors_io import Reader, Tensor, checkpoint

from .plan import Plan
from .streamed import Streamed, can_stream

NEW = 16  # tokens of an answer
PROMPTS = (
    "안녕하세요? 자기소개를 해 주세요.",
    "대한민국의 수도는 어디인가요?",
    "The capital of Korea is",
    "다음 문장을 요약해 주세요: 한강은 서울을 가로질러 흐르는 강이다.",
)
# Logits' rms difference as a share of their spread that rounding explains, generously.
ALLOWED = {"F32": 1e-3, "F16": 3e-2, "BF16": 2e-1}
WHOLE = 128 << 20  # bytes in float32 of a model that is loaded as it is; a larger one is streamed
MEMORY_SHARE = 0.6  # of what is free, for a model that is larger and cannot be streamed


@dataclass(frozen=True, slots=True)
class Answers:
    """Greedy token ids, (prompts, new tokens), and the logits that chose them, (..., vocabulary)."""

    tokens: Any
    logits: Any


def compare(known: Plan, out: Path) -> dict[str, Any]:
    """Counts for the verdict. Raises Differs.

    The merged model writes its greedy answers; base + adapter reads them in one pass and must have chosen each
    token itself: then its own greedy answers are the same.
    """
    import torch

    need = 4 * sum(math.prod(output.shape) for output in known.outputs)
    streams = need > WHOLE and can_stream(known.config)
    if not streams and need > WHOLE and need > MEMORY_SHARE * (free := available_memory()):
        kind = known.config.get("model_type")
        return {
            "skipped": f"in float32 the model needs {need / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} GB "
            f"are free, and {kind} cannot be streamed"
        }
    prompts = _prompts(known, out)
    with torch.no_grad(), Reader() as reader:
        model = _merged(known, out, reader if streams else None)
        wrote = answers(model, prompts)
        del model
        gc.collect()
        model = _with_adapter(known, reader if streams else None)
        read = chosen(model, prompts, wrote.tokens)
    return _judged(wrote, read, known.dtype)


def _judged(wrote: Answers, read: Answers, dtype: str) -> dict[str, Any]:
    from .verify_child import Differs

    gap = (wrote.logits - read.logits).abs()
    share = math.sqrt(float(gap.pow(2).mean()) / max(float(read.logits.var()), 1e-30))
    if not share <= ALLOWED.get(dtype, 1e-3):
        raise Differs(f"the logits differ by {share:.1%} of their spread")
    parted = (wrote.tokens != read.tokens).nonzero().tolist()
    for prompt, place in parted:
        best = read.logits[prompt, place].topk(2).values
        if float(best[0] - best[1]) > 2 * float(gap[prompt, place].max()):
            raise Differs(f"greedy answers to prompt {prompt} part after {place} tokens")
    tokens = wrote.tokens.numel() - len(parted)
    return {"tokens": tokens, "ties": len(parted), "logits": float(f"{share:.3g}")}


def available_memory() -> int:
    """Bytes that can be taken without swapping; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), "0")
    return int(found) * 1024


def answers(model: Any, prompts: Sequence[Sequence[int]], new: int = NEW) -> Answers:
    """`new` greedy tokens after each of the prompts, which are of one length, whatever they are."""
    import torch

    cache, tokens, logits = None, [], []
    feed = torch.tensor([list(prompt) for prompt in prompts])
    for _ in range(new):
        out = model(input_ids=feed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        logits.append(out.logits[:, -1].float())
        tokens.append(logits[-1].argmax(dim=-1))
        feed = tokens[-1][:, None]
    return Answers(torch.stack(tokens, dim=1), torch.stack(logits, dim=1))


def chosen(model: Any, prompts: Sequence[Sequence[int]], tokens: Any) -> Answers:
    """What the model would have written in the place of each of the `tokens`, (prompts, new tokens)."""
    import torch

    feed = torch.cat([torch.tensor([list(prompt) for prompt in prompts]), tokens[:, :-1]], dim=1)
    new = tokens.shape[1]
    logits = model(input_ids=feed, use_cache=False, logits_to_keep=new).logits[:, -new:].float()
    return Answers(logits.argmax(dim=-1), logits)


def _prompts(known: Plan, out: Path) -> list[list[int]]:
    """Prompts in the model's own words, cut at the front to one length; any ids where there is no tokenizer."""
    found = _encoded(known, out)
    length = min(map(len, found))
    return [prompt[-length:] for prompt in found]


def _encoded(known: Plan, out: Path) -> list[list[int]]:
    if not (out / "tokenizer_config.json").is_file():
        return [[(7 * i + start) % known.vocabulary for i in range(12)] for start in (1, 5, 9)]
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(out), trust_remote_code=False)
    if not tokenizer.chat_template:
        return [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for prompt in PROMPTS
    ]


def _merged(known: Plan, out: Path, reader: Reader | None) -> Any:
    """The merged model; with a reader its weights stay on disk."""
    if reader is None:
        return _load(out)
    return _streamed(known, out, checkpoint(out).tensors, reader).model


def _with_adapter(known: Plan, reader: Reader | None) -> Any:
    """The base with its adapter under PEFT; with a reader the base's weights stay on disk."""
    from peft import PeftModel

    if reader is not None:
        changes = [(output.name, output.change) for output in known.outputs]
        held = frozenset(name for name, c in changes if c is not None and c.replaced is not None)
        streamed = _streamed(known, known.base.directory, known.base.tensors, reader, held)
        wrapped = PeftModel.from_pretrained(streamed.model, str(known.adapter)).eval()
        streamed.keep_whole(partial(_looks_at_weights, known.settings.dora))
        return wrapped
    model = _load(known.base.directory)
    if model.get_input_embeddings().weight.shape[0] != known.vocabulary:
        model.resize_token_embeddings(known.vocabulary, mean_resizing=False)
    return PeftModel.from_pretrained(model, str(known.adapter)).eval()


def _streamed(
    known: Plan,
    place: Path,
    tensors: Mapping[str, Tensor],
    reader: Reader,
    held: frozenset[str] = frozenset(),
) -> Streamed:
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(str(place), trust_remote_code=False)
    config.vocab_size = known.vocabulary
    return Streamed(config, tensors, reader, held)


def _looks_at_weights(dora: bool, module: Any) -> bool:
    """Whether a module of PEFT's reads its base layer's weight instead of only calling it."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return isinstance(module, TrainableTokensLayer) or (dora and isinstance(module, LoraLayer))


def _load(place: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        str(place), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
