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

NEW_TOKENS = 16  # tokens of each answer
PROMPTS = (
    "안녕하세요? 자기소개를 해 주세요.",
    "대한민국의 수도는 어디인가요?",
    "The capital of Korea is",
    "다음 문장을 요약해 주세요: 한강은 서울을 가로질러 흐르는 강이다.",
)
# By dtype, the largest difference that rounding can explain: rms of the logits' differences, divided by the
# logits' standard deviation.
MAX_DIFFERENCE = {"F32": 1e-3, "F16": 3e-2, "BF16": 2e-1}
# A model of up to SMALL_MODEL bytes in float32 is always loaded; a larger one only if it takes at most
# MEMORY_SHARE of the free memory.
SMALL_MODEL = 128 << 20
MEMORY_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Answers:
    """Greedy token ids, (prompts, new tokens), and the logits that chose them, (..., vocabulary)."""

    tokens: Any
    logits: Any


def compare_answers(plan: Plan, out: Path) -> dict[str, Any]:
    """`tokens`, `ties` and `logits` of a Verdict, or `skipped` with the reason.

    The merged model generates greedy answers. Base + adapter reads them in one pass. Where it ranks each of their
    tokens first, it would have generated the same answers. Raises OutputError where the answers differ.
    """
    import torch

    needed_bytes = 4 * sum(math.prod(output.target.shape) for output in plan.outputs)
    free_bytes = available_memory(Path("/proc/meminfo"), Path("/sys/fs/cgroup"))
    if needed_bytes > SMALL_MODEL and needed_bytes > MEMORY_SHARE * free_bytes:
        return {
            "skipped": f"in float32 the model needs {needed_bytes / 1e9:,.1f} GB of memory, "
            f"{free_bytes / 1e9:,.1f} GB are free"
        }
    from peft import PeftModel

    prompts = _prompts(plan, out)
    with torch.no_grad():
        merged_answers = generate_answers(_load(out), prompts)
        gc.collect()  # frees the merged model before the base is loaded
        base = _load(plan.base.directory)
        if base.get_input_embeddings().weight.shape[0] != plan.vocabulary:
            base.resize_token_embeddings(plan.vocabulary, mean_resizing=False)
        model = PeftModel.from_pretrained(base, str(plan.adapter)).eval()
        adapter_answers = predict_answers(model, prompts, merged_answers.tokens)
    return judge_answers(merged_answers, adapter_answers, plan.dtype)


def judge_answers(merged_answers: Answers, adapter_answers: Answers, dtype: str) -> dict[str, Any]:
    """compare_answers for answers already computed: those of the merged model and of base + adapter."""
    gap = (merged_answers.logits - adapter_answers.logits).abs()
    share = math.sqrt(float(gap.pow(2).mean()) / max(float(adapter_answers.logits.var()), 1e-30))
    if not share <= MAX_DIFFERENCE.get(dtype, 1e-3):
        raise OutputError(f"the logits differ by {share:.1%} of their spread")
    differences = (merged_answers.tokens != adapter_answers.tokens).nonzero().tolist()
    for prompt, position in differences:
        best = adapter_answers.logits[prompt, position].topk(2).values
        if float(best[0] - best[1]) > 2 * float(gap[prompt, position].max()):
            raise OutputError(f"greedy answers to prompt {prompt} part after {position} tokens")
    equal = merged_answers.tokens.numel() - len(differences)
    return {"tokens": equal, "ties": len(differences), "logits": float(f"{share:.3g}")}


def available_memory(meminfo: Path, cgroup: Path) -> int:
    """Free memory in bytes, without swapping: the machine's, or less where its container allows less. 0: unknown."""
    try:
        kib = re.search(r"MemAvailable:\s*(\d+)", meminfo.read_text(encoding="ascii"))
    except OSError:
        return 0
    free_bytes = int(kib[1]) * 1024 if kib else 0
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        usage = int((cgroup / "memory.current").read_text(encoding="ascii"))
        stat = (cgroup / "memory.stat").read_text(encoding="ascii")
    except (OSError, ValueError):  # no container, or "max": no limit
        return free_bytes
    page_cache = re.search(r"^file (\d+)", stat, re.MULTILINE)
    return min(free_bytes, limit - usage + int(page_cache[1] if page_cache else 0))


def generate_answers(
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


def predict_answers(model: Any, prompts: Sequence[Sequence[int]], tokens: Any) -> Answers:
    """For each of `tokens` (prompts, new tokens): the token the model itself ranks first there, and its logits."""
    import torch

    feed = torch.cat([torch.tensor(prompts), tokens[:, :-1]], dim=1)
    count = tokens.shape[1]
    logits = model(input_ids=feed, use_cache=False, logits_to_keep=count).logits[:, -count:].float()
    return Answers(logits.argmax(dim=-1), logits)


def _prompts(plan: Plan, out: Path) -> list[list[int]]:
    """Prompts in the model's chat template, cut at the front to one length. Without a tokenizer: made-up ids."""
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
        str(directory),
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        pad_token_id=None,  # where it is no row's, LLaMA's embedding could not be made
    ).eval()
