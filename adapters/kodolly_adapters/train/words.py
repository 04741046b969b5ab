"""Tokens of words that were met before: the greater part of tokenizing, looked up instead of done again.

GPT-NeoX's kind of tokenizer cuts a text before every space that a word follows, and around runs of other
whitespace, before it looks at anything else. So a text's ids are its words' ids, one after the other, and a
word's ids are the same wherever it stands. They come from the tokenizer itself; only the cutting is done here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any

MOST = 1 << 19  # words remembered: some 120 MB
# The whitespace of Python's `re` that is none for the tokenizers' regular expressions.
DOUBTFUL = re.compile("[\x1c-\x1f]")
WORDS = re.compile(r" ?\S+|\s+(?!\S)|\s+")

Encode = Callable[[Sequence[str]], list[list[int]]]


class Words:
    """Ids by words for one tokenizer. `encode` asks the tokenizer itself for the ids of texts."""

    def __init__(self, definition: dict[str, Any], encode: Encode) -> None:
        names = sorted((token["content"] for token in definition["added_tokens"]), key=len)
        self._marks = (
            re.compile(f"({'|'.join(map(re.escape, reversed(names)))})") if names else None
        )
        self._encode = encode
        self._known: dict[str, list[int]] = {}
        self.most = MOST

    def __len__(self) -> int:
        return len(self._known)

    @classmethod
    def of(cls, definition: str, encode: Encode) -> Words | None:
        """A memory for the tokenizer of this JSON, None when words do not stand alone in it."""
        parsed = json.loads(definition)
        return cls(parsed, encode) if _cuts_at_words(parsed) else None

    def cut(self, text: str) -> list[str] | None:
        """The text in words and special tokens, None when it holds what may be cut otherwise."""
        if DOUBTFUL.search(text):
            return None
        if self._marks is None:
            return WORDS.findall(text)
        parts = self._marks.split(text)
        if len(parts) == 1:
            return WORDS.findall(text)
        cut: list[str] = []
        for number, part in enumerate(parts):
            cut += [part] if number % 2 else WORDS.findall(part)
        return cut

    def ids(self, texts: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """The ids of every word of every text."""
        known = self._known
        new = list({word for words in texts for word in words if word not in known})
        if new:
            if len(known) + len(new) > self.most:  # what is common comes back at once
                known.clear()
                new = list({word for words in texts for word in words})
            known.update(zip(new, self._encode(new), strict=True))
        return [[known[word] for word in words] for words in texts]


def flat(ids: Sequence[Sequence[int]]) -> list[int]:
    """The ids of a text's words as the text's."""
    return list(chain.from_iterable(ids))


def token_borders(
    text: str, words: Sequence[str], ids: Sequence[Sequence[int]], borders: Sequence[int]
) -> list[int] | None:
    """How many tokens come before each of the characters, None where one stands inside a word.

    None after a space, too: offsets leave out the spaces around a token, so that one of spaces alone
    counts to what follows it.
    """
    ends = {0: 0}
    ends.update(zip(accumulate(map(len, words)), accumulate(map(len, ids)), strict=True))
    if any(border not in ends or text[border - 1 : border] == " " for border in borders):
        return None
    return [ends[border] for border in borders]


def _cuts_at_words(parsed: dict[str, Any]) -> bool:
    """Whether it is GPT-NeoX's kind: a byte-level BPE, whose special tokens are taken out first of all."""
    model, cutter = parsed["model"], parsed["pre_tokenizer"] or {}
    return (
        cutter.get("type") == "ByteLevel"
        and cutter.get("use_regex", True)
        and not cutter["add_prefix_space"]
        and model.get("type") == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and parsed["normalizer"] in (None, {"type": "NFC"})
        and all(_is_simple(token) for token in parsed["added_tokens"])
    )


def _is_simple(token: dict[str, Any]) -> bool:
    refinements = ("lstrip", "rstrip", "single_word", "normalized")
    return token["content"].isascii() and not any(token[name] for name in refinements)
