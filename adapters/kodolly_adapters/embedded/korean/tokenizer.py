"""A Korean tokenizer of Polyglot's kind: byte-level BPE, one special token that begins, ends and pads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

END = "<|endoftext|>"
SPECIALS = ("<|unused0|>", "<|unused1|>", END)  # Polyglot's: <|endoftext|> is number 2
END_ID = 2
VOCABULARY = 6000


def train_tokenizer(
    texts: Iterable[str], out: Path, *, size: int = VOCABULARY, context: int
) -> None:
    """Learn `size` pieces from `texts` and write tokenizer.json and tokenizer_config.json into `out`.

    Bytes are the alphabet, so every text can be written and comes back the same; every digit is a
    piece of its own. `context` is the model's length in tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        # GPT-NeoX refuses token_type_ids, so the tokenizer makes none.
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (out / "tokenizer_config.json").write_text(
        json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
    )
