"""The training text and its response mask."""

from __future__ import annotations

from typing import Any

import pytest

from kodolly_templates import TemplateError, TrainingText, get_template

CHAT = [
    {"role": "user", "content": "하나"},
    {"role": "assistant", "content": "둘"},
    {"role": "user", "content": "셋", "context": "넷"},
    {"role": "assistant", "content": "다섯"},
]


def test_learned_ranges_are_responses_with_their_ends() -> None:
    """Each span is a response and its end key, and nothing around it."""
    training = get_template("dolly-ko").training(CHAT)
    learned = [training.text[start:end] for start, end in training.spans]
    assert learned == ["둘\n\n### 끝", "다섯\n\n### 끝"]


def test_koalpaca_learns_the_space_before_a_response() -> None:
    """The space belongs to the first learned token, since the generation prompt ends before it."""
    training = get_template("koalpaca").training(CHAT, eos_token="<|endoftext|>")
    learned = [training.text[start:end] for start, end in training.spans]
    assert learned == [" 둘<|endoftext|>", " 다섯<|endoftext|>"]


def test_eos_follows_the_last_end_only() -> None:
    """A tokenizer's eos is learned after the last end key; earlier turns stay as they are served."""
    training = get_template("dolly-ko").training(CHAT, eos_token="</s>")
    learned = [training.text[start:end] for start, end in training.spans]
    assert learned == ["둘\n\n### 끝", "다섯\n\n### 끝</s>"]


def test_open_conversation_cannot_be_learned() -> None:
    """Without a response at the end there is nothing to learn, which names the message."""
    with pytest.raises(TemplateError, match="message 2: training needs a response"):
        get_template("dolly-ko").training(CHAT[:3])


@pytest.mark.parametrize("name", ["dolly-ko", "dolly-v2", "koalpaca"])
def test_mask_equals_transformers_assistant_mask(name: str, neox_tokenizer: Any) -> None:
    """Our mask is the one transformers derives from the template's generation blocks."""
    template = get_template(name)
    theirs = neox_tokenizer.apply_chat_template(
        CHAT,
        chat_template=template.jinja(),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, learned = template.training(CHAT).encode(neox_tokenizer)
    assert ids == theirs["input_ids"]
    assert [int(flag) for flag in learned] == theirs["assistant_masks"]
    assert 0 < sum(learned) < len(learned)


def test_slow_tokenizers_are_refused() -> None:
    """A tokenizer without offsets cannot give a mask, and says so."""
    with pytest.raises(TemplateError, match="fast tokenizer"):
        TrainingText("x", ((0, 1),)).encode(object())
