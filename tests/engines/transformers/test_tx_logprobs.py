"""Log probabilities: what the model says, in the forms that OpenAI and vLLM give them."""

import math
from typing import Any

import torch
from support.tiny_models import tiny_tokenizer

from kodolly.engines.transformers.logprobs import LogprobWriter, TokenTexts, prompt_form, scores

TOKENIZER = tiny_tokenizer()
LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, float("nan"), float("-inf")]])


def texts() -> TokenTexts:
    return TokenTexts(lambda ids: str(TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)))


def ids(text: str) -> list[int]:
    return [int(token) for token in TOKENIZER.encode(text, add_special_tokens=False)]


def test_scores_are_the_models_own() -> None:
    """The logarithm of the softmax, the rank among all tokens, and the most likely ones."""
    first, second = scores(LOGITS, [1, 3], 2)
    total = math.log(sum(math.exp(value) for value in range(4)))
    assert math.isclose(first.logprob, 1 - total, rel_tol=1e-5)
    assert first.rank == 3
    assert [token for token, _ in first.top] == [3, 2]
    assert list(first.entries) == [1, 3, 2]
    assert second.logprob == -9999.0  # as the API writes minus infinity
    assert scores(LOGITS[:0], [], 2) == []


def test_the_text_of_tokens_inside_a_character() -> None:
    """A rare syllable of several tokens belongs to the one that completes it; joined, they are the text."""
    text = "한뷁 🙂 a"
    tokens, made = ids(text), texts()
    assert len(ids("뷁")) > 1
    parts = [made.text(token, tokens[:index]) for index, token in enumerate(tokens)]
    assert "".join(parts) == text
    assert "뷁" in parts
    assert not any("\ufffd" in part for part in parts)


def written(chat: bool, count: int = 1, *, as_ids: bool = False) -> list[dict[str, Any]]:
    tokens = ids("서울 뷁")
    rows = torch.zeros(len(tokens), len(TOKENIZER))
    rows[:, 5] = 1.0
    writer = LogprobWriter(texts(), chat=chat, count=count, ids=as_ids)
    return [
        writer.write([token], [score])
        for token, score in zip(tokens, scores(rows, tokens, count), strict=True)
    ]


def test_the_form_of_a_completion() -> None:
    """Tokens, their offsets in the text over all events, and alternatives by their text."""
    parts = written(chat=False)
    tokens = [token for part in parts for token in part["tokens"]]
    offsets = [offset for part in parts for offset in part["text_offset"]]
    assert "".join(tokens) == "서울 뷁"
    assert offsets == [len("".join(tokens[:index])) for index in range(len(tokens))]
    assert all(part["top_logprobs"][0].keys() >= set(part["tokens"]) for part in parts)


def test_the_form_of_a_chat() -> None:
    """Each token with its bytes, and as many alternatives as were asked for."""
    for count in (0, 2):
        content = [entry for part in written(chat=True, count=count) for entry in part["content"]]
        assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == "서울 뷁"
        assert all(len(entry["top_logprobs"]) == count for entry in content)
        assert all(entry["logprob"] < 0 for entry in content)


def test_tokens_by_their_ids() -> None:
    """return_tokens_as_token_ids: also for tokens whose text is not their own."""
    tokens = [token for part in written(chat=False, as_ids=True) for token in part["tokens"]]
    assert tokens == [f"token_id:{token}" for token in ids("서울 뷁")]


def test_the_form_of_a_prompt() -> None:
    """vLLM's: nothing for the first token, then by id with rank and text."""
    prompt = ids("서울")[:1] + ids("a")
    (score,) = scores(torch.zeros(1, len(TOKENIZER)), prompt[1:], 1)
    first, second = prompt_form(texts(), prompt, [None, score])
    assert first is None
    assert second[str(prompt[1])]["decoded_token"] == "a"
    assert second[str(prompt[1])]["rank"] == 1
