"""Rows to train on, hostile ones most of all, and the kinds of tokenizer that must read them."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from support.tiny_models import TEXT, tiny_tokenizer

from kodolly_adapters.train.recipe import Recipe
from kodolly_templates import get_template

Messages = list[dict[str, Any]]

DIALECTS = ("dolly-ko", "dolly-v2", "dolly-v2-special", "koalpaca")
WORDS = (
    *("안녕하세요", "서울은 대한민국의 수도입니다.", "무엇인가요?", "김치찌개를 끓이려면", "the capital of Korea"),
    *(" ", "\n", "\n\n", "\r\n", "\t", "　", "###", "### 끝", "### 명령어:", "### Response:\n", "\u2060"),
    *("<|endoftext|>", "<s>", "</s>", "<|im_end|>", "👩‍👩‍👧‍👦", "ㅋㅋ", "ᄒ", "́"),
    unicodedata.normalize("NFD", "각설탕을 넣으세요"),
)  # fmt: skip
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=8).map("".join)
said = texts.filter(lambda text: text.strip() != "")

# Seconds differ from machine to machine, and the first example of a test loads libraries.
QUIET = settings(
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@st.composite
def dialogues(draw: st.DrawFn, turns: int = 3) -> Messages:
    """A system message or none, then closed exchanges, some with a context."""
    messages: Messages = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(texts)})
    for _ in range(draw(st.integers(1, turns))):
        asked = {"role": "user", "content": draw(said)}
        if context := draw(texts).strip():
            asked["context"] = context
        messages += [asked, {"role": "assistant", "content": draw(said)}]
    return messages


def dolly(instruction: str, response: str, context: str = "") -> dict[str, str]:
    """A Dolly row."""
    return {
        "instruction": instruction,
        "context": context,
        "response": response,
        "category": "open_qa",
    }


def write_lines(path: Path, rows: Iterable[Any]) -> str:
    """The rows as JSON lines in `path`; returns its name, as a recipe has it."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def recipe(train: str, **data: Any) -> Recipe:
    """A recipe of one file; no row is set aside unless told."""
    values = {"train": [train], "validation_share": 0, "max_length": 512, **data}
    return Recipe.model_validate({"name": "test", "base": "none", "data": values})


@cache
def tokenizer(kind: str) -> Any:
    """A tokenizer of one kind.

    neox: byte-level BPE that adds no bos; trimmed: the same with offsets that leave spaces out, as
    GPT-NeoX's own; llama: SentencePiece-like with bos and byte fallback; metaspace: LLaMA's in
    transformers 5, where a text after the bos begins without a space.
    """
    if kind == "neox":
        return tiny_tokenizer()
    return _trimmed() if kind == "trimmed" else _sentencepiece(kind)


def tokenizer_for(kind: str, template: str) -> Any:
    """A copy of the tokenizer that has the template's special tokens, as training gives it."""
    import copy

    made = copy.deepcopy(tokenizer(kind))
    special = list(get_template(template).special_tokens)
    if special:
        made.add_special_tokens({"additional_special_tokens": special, "eos_token": special[0]})
    return made


def _trimmed() -> Any:
    from tokenizers import processors

    made = tiny_tokenizer()
    made.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return made


def _sentencepiece(kind: str) -> Any:
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False)
    trained.train_from_iterator(TEXT.splitlines(), trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(model["vocab"], key=model["vocab"].get)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in model["merges"]]
    raw = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if kind == "metaspace":
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        raw.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    raw.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
