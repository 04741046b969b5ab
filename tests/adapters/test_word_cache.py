"""Looked-up words give the tokenizer's own ids, and only where words stand alone in it."""

from itertools import chain

from support.tuning_rows import tokenizer

from kodolly_adapters.word_cache import WordCache

TEXTS = ["가 나  다\n", "\t라 <|endoftext|> 마", " 바", "사\n\n 아", "a b  c 1 2"]


def test_ids_of_cut_texts_are_the_tokenizers_own() -> None:
    """Also once the cache is full and begins anew; LLaMA's kind is not cached at all."""
    backend = tokenizer("neox").backend_tokenizer

    def ids(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]

    cache = WordCache.of(backend.to_str(), ids)  # type: ignore[arg-type]
    assert cache is not None
    cache.capacity = 5
    for text in TEXTS * 2:
        words = cache.cut(text)
        assert words is not None
        assert "".join(words) == text
        assert list(chain.from_iterable(cache.ids([words])[0])) == ids([text])[0]
        assert len(cache) <= max(cache.capacity, len(set(words)))
    assert cache.cut("가\x1c나") is None  # Python and the tokenizer do not agree on this one
    assert WordCache.of(tokenizer("llama").backend_tokenizer.to_str(), ids) is None  # type: ignore[arg-type]
