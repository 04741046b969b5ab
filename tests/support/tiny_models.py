"""Complete tiny model directories with random weights: a GPT-NeoX and a LLaMA that read Korean.

Their tokenizer is a byte-level BPE trained on a page of Korean below: common syllables are one
token, rare ones and emoji are two to four. Head size 64 suits vLLM's CPU attention. Greedy text is
whole characters: tokens that are only a part of one, and marks, have all-zero output rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONTEXT = 2048
VOCABULARY = 640  # entries of the tokenizer at most; the models have as many rows
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = """\
안녕하세요? 오늘은 날씨가 맑고 바람이 조금 붑니다. 아침에 일어나서 물을 한 잔 마셨습니다.
대한민국의 수도는 서울입니다. 서울에는 한강이 흐르고 다리가 여러 개 있습니다.
한국어는 조사가 발달한 언어이고, 글자는 자음과 모음을 모아서 씁니다.
질문에 답할 때는 아는 것만 말하고, 모르는 것은 모른다고 말하는 것이 좋습니다.
어제 도서관에서 책을 두 권 빌렸습니다. 하나는 역사책이고 하나는 요리책입니다.
The capital of Korea is Seoul. A model reads tokens and writes tokens, one after another.
김치찌개를 끓이려면 김치와 두부, 돼지고기를 넣고 삼십 분쯤 끓이면 됩니다.
버스를 타고 학교에 가면 이십 분이 걸리고, 걸어서 가면 한 시간이 걸립니다.
"""


def make_tiny_neox(directory: Path, *, seed: int = 0) -> Path:
    """A two-layer GPT-NeoX (Polyglot's architecture) in `directory`; returns it."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        rotary_pct=0.5,
        **_common(),
    )
    return _write(directory, GPTNeoXForCausalLM, config, seed)


def make_tiny_llama(directory: Path, *, seed: int = 0) -> Path:
    """A two-layer LLaMA with grouped attention in `directory`; returns it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=256,
        **_common(),
    )
    return _write(directory, LlamaForCausalLM, config, seed)


def _common() -> dict[str, Any]:
    return {
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.2,  # far apart logits: no ties within float noise
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "dtype": "float32",
    }


def _write(directory: Path, kind: Any, config: Any, seed: int) -> Path:
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).eval()
    _silence_parts(model, tokenizer)
    model.save_pretrained(str(directory))
    tokenizer.save_pretrained(str(directory))
    for path in directory.iterdir():
        path.chmod(0o644)  # safetensors writes 0600
    _write_json(
        directory / "generation_config.json",
        {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0},
    )
    _write_json(directory / "model_card.json", _card(directory, config))
    return directory


def tiny_tokenizer() -> Any:
    """The tokenizer of both models, trained on TEXT: a transformers fast tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=MARKS[0],
        eos_token=MARKS[2],
        pad_token=MARKS[0],
        model_max_length=CONTEXT,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _silence_parts(model: Any, tokenizer: Any) -> None:
    import torch

    rows = model.get_output_embeddings().weight
    with torch.no_grad():
        for token in range(rows.shape[0]):
            text = tokenizer.decode([token]) if token < len(tokenizer) else "\ufffd"
            if token < len(MARKS) or "\ufffd" in text:
                rows[token] = 0


def _card(directory: Path, config: Any) -> dict[str, Any]:
    return {
        "name": directory.name,
        "base": "random",
        "architecture": config.architectures[0],
        "template": "tokenizer",
        "license": "Apache-2.0",
        "source": {"made_by": "tests"},
        "created_by": "tests",
        "dtype": "float32",
        "metrics": {},
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
