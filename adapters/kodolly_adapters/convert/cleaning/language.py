"""Rule `untranslated`: the answer is in a foreign language, and the instruction does not ask for one.

Only prose is judged, because good Korean answers contain foreign letters too: in code, addresses,
formulas, names and quotations.
"""

from __future__ import annotations

import re
from itertools import islice

from .rules import table

_HANGUL = re.compile("[가-힣ㄱ-ㅎㅏ-ㅣ]")
_NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|<[^<>\n]{1,200}>|https?://\S+|www\.\S+|[\w.+-]{1,64}@\S+",
    re.DOTALL,
)
_CODE_LINE = re.compile(
    r"[{};][ \t]*$|^[ \t]*(?:def|class|import|from|return|for|while|if|else|elif|try|print|var|let|const|"
    r"public|private|function|#include|SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|WITH)\b|"
    r"\w\(|[=<>]=|\w[ \t]*=[ \t]*\S|=>|->|^[ \t]*(?://|#|<)|\w\[",
    re.MULTILINE,
)
_ASKS_FOR_C = re.compile(r"\bc\b")
# The first byte of a letter in UTF-8 shows its script.
_LATIN = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" + bytes(range(0xC3, 0xCA))
_HANGUL_LEADS = bytes(range(0xEA, 0xEE))  # U+A000-DFFF
_OTHER_LEADS = bytes([*range(0xCD, 0xE2), *range(0xE3, 0xEA)])  # Greek to Thai, kana, Han
_NO_LETTER = bytes(set(range(256)) - {*_LATIN, *_HANGUL_LEADS, *_OTHER_LEADS})
_MIN_LETTERS = 20  # the language of a shorter answer cannot be told
_BEGINNING = 1000  # characters of a text that are examined


def is_untranslated(instruction: str, context: str, response: str) -> bool:
    """Is the response mostly not Korean, though the instruction does not ask for that?"""
    if len(response) < _MIN_LETTERS or _is_mostly_korean(_letters(response)):
        return False
    beginning = response[:_BEGINNING]
    endings = table("words.toml")["korean_endings"]
    if any(ending in beginning for ending in endings) or response in context:
        return False
    is_korean_question = bool(_HANGUL.search(instruction))
    if is_korean_question and _asks_for_foreign(instruction.lower()):
        return False
    return _is_foreign(response) and not (
        is_korean_question and (_is_foreign(context) or _is_foreign(instruction))
    )


def _letters(text: str) -> bytes:
    """The first UTF-8 byte of every letter in the text."""
    return text.encode("utf-8", "replace").translate(None, _NO_LETTER)


def _is_mostly_korean(letters: bytes) -> bool:
    """Is Hangul at least three tenths of the letters?"""
    hangul = len(letters) - len(letters.translate(None, _HANGUL_LEADS))
    return 10 * hangul >= 3 * len(letters)


def _is_foreign(text: str) -> bool:
    """Is the beginning of the text prose, and mostly not Hangul?"""
    text = text[:_BEGINNING]
    if "</" in text:  # HTML is not prose
        return False
    prose = _NOT_PROSE.sub(" ", text)
    letters = _letters(prose)
    if len(letters) < _MIN_LETTERS or _is_mostly_korean(letters):
        return False
    if 2 * len(letters.translate(None, _HANGUL_LEADS + _OTHER_LEADS)) < len(letters):
        return True
    words = prose.lower().split()
    frequent = frozenset(table("words.toml")["latin_sentence_words"])
    if sum(word in frequent for word in words) * 6 < len(words):
        return False
    lines = prose.count("\n") + 1
    code_signs = islice(_CODE_LINE.finditer(prose), (lines + 1) // 2)  # code has one in two lines
    return sum(1 for _ in code_signs) * 2 < lines


def _asks_for_foreign(instruction: str) -> bool:
    requests = table("words.toml")["foreign_requests"]
    return any(word in instruction for word in requests) or bool(_ASKS_FOR_C.search(instruction))
