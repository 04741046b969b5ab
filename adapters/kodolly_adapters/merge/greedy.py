"""Greedy answers of base + adapter (PEFT) and of the merged model, token by token."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .plan import Plan

NEW = 16  # tokens of an answer
PROMPTS = (
    "안녕하세요? 자기소개를 해 주세요.",
    "대한민국의 수도는 어디인가요?",
    "The capital of Korea is",
    "다음 문장을 요약해 주세요: 한강은 서울을 가로질러 흐르는 강이다.",
)
# Logits' rms difference as a share of their spread that rounding explains, generously.
ALLOWED = {"F32": 1e-3, "F16": 3e-2, "BF16": 2e-1}
MEMORY_SHARE = 0.6  # of what is free


@dataclass(frozen=True, slots=True)
class Answer:
    """Greedy token ids, (new tokens,), and the logits that chose them, (new tokens, vocabulary)."""

    tokens: list[int]
    logits: Any


def compare(known: Plan, out: Path) -> dict[str, Any]:
    """Counts for the verdict. Raises Differs."""
    import torch

    from .verify_child import Differs

    need = 4 * sum(math.prod(output.shape) for output in known.outputs)
    free = available_memory()
    if need > MEMORY_SHARE * free:
        return {
            "skipped": f"in float32 the model needs {need / 1e9:,.1f} GB of memory, "
            f"{free / 1e9:,.1f} GB are free"
        }
    prompts = _prompts(known, out)
    with torch.no_grad():
        model = _with_adapter(known)
        first = [answer(model, prompt) for prompt in prompts]
        del model
        gc.collect()
        model = _load(out)
        second = [answer(model, prompt) for prompt in prompts]
        ties, error, spread = 0, 0.0, 0.0
        for number, (one, other) in enumerate(zip(first, second, strict=True)):
            until = _common(one.tokens, other.tokens)
            # Up to the first difference both have read the same tokens.
            seen = min(until + 1, len(one.tokens))
            gap = one.logits[:seen] - other.logits[:seen]
            error += float(gap.pow(2).mean())
            spread += float(one.logits[:seen].var())
            if until == len(one.tokens):
                continue
            best = one.logits[until].topk(2).values
            if float(best[0] - best[1]) > 2 * float(gap.abs().max()):
                raise Differs(f"greedy answers to prompt {number} part after {until} tokens")
            ties += 1
    share = math.sqrt(error / spread) if spread else 0.0
    if not share <= ALLOWED.get(known.dtype, 1e-3):
        raise Differs(f"the logits differ by {share:.1%} of their spread")
    tokens = sum(_common(a.tokens, b.tokens) for a, b in zip(first, second, strict=True))
    return {"tokens": tokens, "ties": ties, "logits": float(f"{share:.3g}")}


def available_memory() -> int:
    """Bytes that can be taken without swapping; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), "0")
    return int(found) * 1024


def answer(model: Any, prompt: Sequence[int], new: int = NEW) -> Answer:
    """`new` greedy tokens after `prompt`, whatever they are."""
    import torch

    cache, tokens, logits = None, [], []
    feed = torch.tensor([list(prompt)])
    for _ in range(new):
        out = model(input_ids=feed, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[0, -1].float())
        tokens.append(int(logits[-1].argmax()))
        feed = torch.tensor([[tokens[-1]]])
    return Answer(tokens, torch.stack(logits))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the start that are the same."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((place for place, (a, b) in pairs if a != b), len(one))


def _prompts(known: Plan, out: Path) -> list[list[int]]:
    """Prompts in the model's own words; any ids where there is no tokenizer."""
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


def _load(place: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        str(place), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()


def _with_adapter(known: Plan) -> Any:
    from peft import PeftModel

    model = _load(known.base.directory)
    if model.get_input_embeddings().weight.shape[0] != known.vocabulary:
        model.resize_token_embeddings(known.vocabulary, mean_resizing=False)
    return PeftModel.from_pretrained(model, str(known.adapter)).eval()
