"""Two small tokenizers of the families we serve, trained here on text written here."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SENTENCES = [
    "오늘 서울의 날씨는 맑고 바람이 조금 붑니다.",
    "대한민국의 수도는 어디인가요? 수도는 서울입니다.",
    "### 명령어: 다음 글을 요약하세요. ### 맥락: 글 ### 응답: 요약 ### 끝",
    "### 질문: 김치찌개는 어떻게 끓이나요? ### 답변: 김치를 먼저 볶습니다.",
    "### Instruction: write a short poem. Input: none ### Response: a poem ### End",
    "Below is an instruction that describes a task. Write a response that completes it.",
    "아래 명령어에 알맞은 응답을 쓰고, 맥락이 있으면 그 내용을 따르세요.",
]
ASCII = [chr(code) for code in range(33, 127)]


def _wrap(tokenizer: Any, **tokens: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


@pytest.fixture(scope="session")
def neox_tokenizer() -> Any:
    """Byte-level BPE with an NFC normalizer, as GPT-NeoX and Polyglot-Ko have; it adds no bos."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return _wrap(tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def llama_tokenizer() -> Any:
    """SentencePiece-like BPE with byte fallback and a bos, as LLaMA has; no newline in its vocabulary."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

    vocab, merges = _sentencepiece_vocab()
    bpe = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    return _wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _sentencepiece_vocab() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(piece -> id, merges) with LLaMA's first ids: unk, bos, eos, then the 256 bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=ASCII, show_progress=False)
    trained.train_from_iterator(SENTENCES, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(model["vocab"], key=model["vocab"].get)
    return {piece: i for i, piece in enumerate(pieces)}, [tuple(m) for m in model["merges"]]
