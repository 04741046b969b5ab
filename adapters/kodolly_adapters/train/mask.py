"""Texts to tokens and which of them are learned: many at once, the same as TrainingText.encode one by one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from kodolly_adapters.errors import BaseError

from .words import Words, flat, token_borders

if TYPE_CHECKING:
    from tokenizers import Encoding

    from kodolly_templates.training import TrainingText

IGNORED = -100  # the label of a token that is not learned, torch's own


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of shape (tokens,) and the half-open ranges of them that are learned, in order."""

    ids: list[int]
    learned: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def learned_count(self) -> int:
        """How many tokens are learned."""
        return sum(end - start for start, end in self.learned)


class Encoder:
    """A tokenizer's own copy of its fast backend, without padding or truncation.

    `bos` is the text of what the tokenizer puts before a text by itself, "" when nothing; `eos` its end
    token. Raises BaseError for a slow tokenizer and for one that cannot write its own end token.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        if not getattr(tokenizer, "is_fast", False):
            raise BaseError("the base's tokenizer is not a fast one: it has no tokenizer.json")
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = False
        self._words = Words.of(self._backend.to_str(), self.ids)
        self.bos_ids = self._leading()
        self.bos = "".join(self._backend.id_to_token(token) or "" for token in self.bos_ids)
        self.eos = str(tokenizer.eos_token or "")
        known = tokenizer.eos_token_id
        self.eos_id = -1 if known is None else int(known)
        if not self.eos or self.ids([self.eos]) != [[self.eos_id]]:
            raise BaseError(
                f"the base's tokenizer has no usable end token (eos_token is {self.eos!r}): "
                "no answer could ever stop; set eos_token in its tokenizer_config.json"
            )

    @property
    def definition(self) -> str:
        """Everything that decides the ids, as JSON."""
        return str(self._backend.to_str()) + self.bos + self.eos

    def encode(self, texts: Sequence[TrainingText]) -> list[Tokens]:
        """Ids and learned ranges of every text; marks of the tokenizer must stand in the texts already."""
        made = self._by_words(texts)
        rest = [number for number, tokens in enumerate(made) if tokens is None]
        encoded = self._batch([texts[number].text for number in rest])
        for number, encoding in zip(rest, encoded, strict=True):
            ranges = [_range(encoding, *span) for span in texts[number].spans]
            made[number] = Tokens(encoding.ids, ranges)
        return [tokens for tokens in made if tokens is not None]

    def _by_words(self, texts: Sequence[TrainingText]) -> list[Tokens | None]:
        """Tokens of the texts whose words are all that is needed; None for the others."""
        words = self._words
        if words is None:
            return [None] * len(texts)
        cuts = [words.cut(text.text) for text in texts]
        found = iter(words.ids([cut for cut in cuts if cut is not None]))
        return [
            None if cut is None else _from_words(text, cut, next(found))
            for text, cut in zip(texts, cuts, strict=True)
        ]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, special tokens in it being special."""
        return [encoding.ids for encoding in self._batch(texts)]

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, in which a special token's name (an HTML `</s>`) is text as any other."""
        self._backend.encode_special_tokens = True
        try:
            return self.ids(texts)
        finally:
            self._backend.encode_special_tokens = False

    def starts(self, text: str) -> list[int]:
        """The character at which each token of the text begins."""
        return [start for start, _ in self._batch([text])[0].offsets]

    def _batch(self, texts: Sequence[str]) -> list[Encoding]:
        return self._backend.encode_batch(list(texts), add_special_tokens=False)

    def _leading(self) -> list[int]:
        encoding = self._backend.encode("가", add_special_tokens=True)
        added = sum(takewhile(bool, encoding.special_tokens_mask))
        return list(encoding.ids[:added])


def _from_words(
    text: TrainingText, words: Sequence[str], ids: Sequence[Sequence[int]]
) -> Tokens | None:
    borders = [border for span in text.spans for border in span]
    found = token_borders(text.text, words, ids, borders)
    if found is None:
        return None
    return Tokens(flat(ids), list(zip(found[::2], found[1::2], strict=True)))


def _range(encoding: Encoding, first: int, last: int) -> tuple[int, int]:
    """The tokens that lie wholly in the characters first..last.

    A token never begins or ends before the one before it does, so both borders are found by bisection:
    making every offset a Python object costs more than all the rest of the mask.
    """
    tokens = range(len(encoding))
    start = bisect_left(tokens, first, key=lambda token: _chars(encoding, token)[0])
    end = bisect_right(tokens, last, lo=start, key=lambda token: _chars(encoding, token)[1])
    return start, end


def _chars(encoding: Encoding, token: int) -> tuple[int, int]:
    chars = encoding.token_to_chars(token)
    assert chars is not None, "a token the tokenizer added by itself"
    return chars
