"""Greedy answers of base + adapter (PEFT) and of the merged model, token by token."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import OutputError

from .plan import Plan

NEW_TOKENS = 16  # of an answer
PROMPTS = (
    "안녕하세요? 자기소개를 해 주세요.",
    "대한민국의 수도는 어디인가요?",
    "The capital of Korea is",
    "다음 문장을 요약해 주세요: 한강은 서울을 가로질러 흐르는 강이다.",
)
# Logits' rms difference as a share of their spread that rounding explains, generously.
ALLOWED = {"F32": 1e-3, "F16": 3e-2, "BF16": 2e-1}
SMALL = 128 << 20  # bytes in float32 of a model that is always loaded
MEMORY_SHARE = 0.6  # of what is free, for a larger model in float32


@dataclass(frozen=True, slots=True)
class Answers:
    """Greedy token ids, (prompts, new tokens), and the logits that chose them, (..., vocabulary)."""

    tokens: Any
    logits: Any


def compare_answers(plan: Plan, out: Path) -> dict[str, Any]:
    """A verdict's tokens, ties and logits; or why it was "skipped". Raises OutputError where answers differ.

    The merged model writes its greedy answers; base + adapter reads them in one pass and must have chosen each
    token itself: then its own greedy answers are the same.
    """
    import torch

    need = 4 * sum(math.prod(output.target.shape) for output in plan.outputs)
    free = available_memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup"))
    if need > SMALL and need > MEMORY_SHARE * free:
        return {
            "skipped": f"in float32 the model needs {need / 1e9:,.1f} GB of memory, "
            f"{free / 1e9:,.1f} GB are free"
        }
    prompts = _prompts(plan, out)
    from peft import PeftModel

    with torch.no_grad():
        written = write_answers(_load(out), prompts)
        gc.collect()  # of the merged model, before the base is loaded
        base = _load(plan.base.directory)
        if base.get_input_embeddings().weight.shape[0] != plan.vocabulary:
            base.resize_token_embeddings(plan.vocabulary, mean_resizing=False)
        adapted = PeftModel.from_pretrained(base, str(plan.adapter)).eval()
        read = read_answers(adapted, prompts, written.tokens)
    return judge_answers(written, read, plan.dtype)


def judge_answers(written: Answers, read: Answers, dtype: str) -> dict[str, Any]:
    """compare_answers for what the merged model wrote and base + adapter would have written."""
    gap = (written.logits - read.logits).abs()
    share = math.sqrt(float(gap.pow(2).mean()) / max(float(read.logits.var()), 1e-30))
    if not share <= ALLOWED.get(dtype, 1e-3):
        raise OutputError(f"the logits differ by {share:.1%} of their spread")
    different = (written.tokens != read.tokens).nonzero().tolist()
    for prompt, place in different:
        best = read.logits[prompt, place].topk(2).values
        if float(best[0] - best[1]) > 2 * float(gap[prompt, place].max()):
            raise OutputError(f"greedy answers to prompt {prompt} part after {place} tokens")
    equal = written.tokens.numel() - len(different)
    return {"tokens": equal, "ties": len(different), "logits": float(f"{share:.3g}")}


def available_memory(meminfo: Path, cgroup: Path) -> int:
    """Bytes that can be taken without swapping, by the machine and by its container's limit; 0 if unknown."""
    try:
        kib = re.search(r"MemAvailable:\s*(\d+)", meminfo.read_text(encoding="ascii"))
    except OSError:
        return 0
    free = int(kib[1]) * 1024 if kib else 0
    try:
        limit, used = (
            int((cgroup / f"memory.{name}").read_text(encoding="ascii"))
            for name in ("max", "current")
        )
        stat = (cgroup / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):  # no container, or "max": no limit
        return free
    cached = re.search(r"^file (\d+)", stat, re.MULTILINE)
    return min(free, limit - used + int(cached[1] if cached else 0))


def write_answers(
    model: Any, prompts: Sequence[Sequence[int]], new_tokens: int = NEW_TOKENS
) -> Answers:
    """The model's greedy answers to prompts (token ids) of one length."""
    import torch

    cache, tokens, logits = None, [], []
    feed = torch.tensor(prompts)
    for _ in range(new_tokens):
        out = model(input_ids=feed, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        logits.append(out.logits[:, -1].float())
        tokens.append(logits[-1].argmax(dim=-1))
        feed = tokens[-1][:, None]
    return Answers(torch.stack(tokens, dim=1), torch.stack(logits, dim=1))


def read_answers(model: Any, prompts: Sequence[Sequence[int]], tokens: Any) -> Answers:
    """What the model would have written in the place of each of the `tokens`, (prompts, new tokens)."""
    import torch

    feed = torch.cat([torch.tensor(prompts), tokens[:, :-1]], dim=1)
    count = tokens.shape[1]
    logits = model(input_ids=feed, use_cache=False, logits_to_keep=count).logits[:, -count:].float()
    return Answers(logits.argmax(dim=-1), logits)


def _prompts(plan: Plan, out: Path) -> list[list[int]]:
    """Prompts in the model's chat template, cut at the front to one length; any ids without a tokenizer."""
    if not (out / "tokenizer_config.json").is_file():
        return [[(7 * i + start) % plan.vocabulary for i in range(12)] for start in (1, 5, 9)]
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(out), trust_remote_code=False)
    template = tokenizer.chat_template
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        if template
        else tokenizer(text)["input_ids"]
        for text in PROMPTS
    ]
    length = min(map(len, prompts))
    return [prompt[-length:] for prompt in prompts]


def _load(directory: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
