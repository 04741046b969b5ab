"""Keep inserted text from ever reading as a key of the template: no user can forge a turn.

A key that turns up in inserted text gets a WORD JOINER (U+2060, invisible) after its first character.
Breaking one key can never make another, so keys are broken one after the other.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby, product, takewhile
from operator import itemgetter

from .errors import TemplateError

WORD_JOINER = "\u2060"
# A longer Hangul key is guarded by the part of it that has no more spellings than this.
MAX_SPELLINGS = 64


def neutralise(text: str, keys: Iterable[str]) -> str:
    """`text` with every occurrence of a key broken; the same object when there is none.

    Raises TemplateError for a key that cannot be guarded (see `check_key`).
    """
    plan = tuple(keys)
    prefixes, breaks = _plan(plan)
    if not any(prefix in text for prefix in prefixes):
        return text
    # One pass for all keys: one a key is too dear for a long text that is full of their beginnings.
    found = tuple(set(_any_of(plan).findall(text)))
    for key in breaks if found else ():
        if key.startswith(found) and key in text:
            text = text.replace(key, broken(key))
    return text


def broken(key: str) -> str:
    """The harmless spelling of a key."""
    return key[0] + WORD_JOINER + key[1:]


def breaks(keys: Iterable[str]) -> tuple[str, ...]:
    """Every string to break, in order; the Jinja template goes through the same list.

    A key stands here in each of its canonically equivalent spellings, because a tokenizer with an NFC
    normalizer (GPT-NeoX's) composes jamo after we looked. One that can overlap itself stands as often as
    its length: `str.replace` skips overlapping occurrences, and each pass breaks the leftmost.
    """
    return _plan(tuple(keys))[1]


def check_key(key: str) -> str:
    """The key without surrounding whitespace; TemplateError when it cannot be guarded."""
    if not is_key(key):
        raise TemplateError(
            f"guard key {key!r} is under two characters or holds a newline or a word joiner"
        )
    return key.strip()


def is_key(text: str) -> bool:
    """Whether `text`, without surrounding whitespace, can be guarded."""
    stripped = text.strip()
    return len(stripped) > 1 and "\n" not in stripped and WORD_JOINER not in stripped


def overlaps_itself(key: str) -> bool:
    """Whether a proper prefix of the key is also a suffix of it."""
    return any(key.startswith(key[start:]) for start in range(1, len(key)))


def spellings(key: str) -> tuple[str, ...]:
    """The key's canonically equivalent spellings in jamo, the key as given first."""
    found = [""]
    for character in unicodedata.normalize("NFC", key):
        choices = _syllable_spellings(character)
        if len(found) * len(choices) > MAX_SPELLINGS:
            break  # breaking this much of the key breaks the key
        found = [start + choice for start, choice in product(found, choices)]
    return tuple(dict.fromkeys((key, *found)))


def _syllable_spellings(character: str) -> Sequence[str]:
    """A Hangul syllable whole, as two parts (syllable + final) and as jamo; others as they are."""
    if not "가" <= character <= "힣":
        return (character,)
    jamo = unicodedata.normalize("NFD", character)
    if len(jamo) == 2:
        return (character, jamo)
    return (character, unicodedata.normalize("NFC", jamo[:2]) + jamo[2], jamo)


@lru_cache(maxsize=256)
def _plan(keys: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(two-character prefixes that must occur before a longer look is worth it, strings to break)."""
    ordered: list[str] = []
    for key in dict.fromkeys(check_key(key) for key in keys):
        for spelling in spellings(key):
            ordered += [spelling] * (len(spelling) if overlaps_itself(spelling) else 1)
    return tuple(dict.fromkeys(key[:2] for key in ordered)), tuple(ordered)


@lru_cache(maxsize=256)
def _any_of(keys: tuple[str, ...]) -> re.Pattern[str]:
    """Finds where a string to break begins; the group is the shortest one that begins there.

    Common beginnings are shared, so that few branches are tried at any place.
    """
    return re.compile(f"(?=({_shared(sorted(set(_plan(keys)[1])))}))")


def _shared(words: Sequence[str]) -> str:
    """A pattern for any of the sorted, different words; a word that begins another stands for it."""
    if not words[0]:
        return ""
    pairs = zip(words[0], words[-1], strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    if shared:
        return re.escape(words[0][:shared]) + _shared([word[shared:] for word in words])
    branches = [_shared(list(group)) for _, group in groupby(words, key=itemgetter(0))]
    return f"(?:{'|'.join(branches)})"
