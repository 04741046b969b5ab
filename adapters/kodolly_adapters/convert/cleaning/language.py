"""Rule `untranslated`: answers left in a foreign language that nothing asked for.

Judged on running text alone: code, addresses, formulas, names and words in quotes are foreign letters in
good Korean answers too.
"""

from __future__ import annotations

import re
from itertools import islice

_HANGUL = re.compile("[가-힣ㄱ-ㅎㅏ-ㅣ]")
_NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|<[^<>\n]{1,200}>|https?://\S+|www\.\S+|[\w.+-]{1,64}@\S+",
    re.DOTALL,
)
# Words that every few words of a Latin-script sentence are; names and code have few of them.
_SENTENCE = frozenset(
    [
        "the",
        "a",
        "an",
        "of",
        "and",
        "to",
        "is",
        "are",
        "was",
        "were",
        "in",
        "it",
        "that",
        "you",
        "your",
        "i",
        "my",
        "we",
        "our",
        "this",
        "with",
        "be",
        "as",
        "have",
        "has",
        "not",
        "on",
        "at",
        "by",
        "from",
        "his",
        "her",
        "they",
        "will",
        "can",
        "but",
        "please",
        "el",
        "los",
        "las",
        "un",
        "una",
        "que",
        "en",
        "es",
        "por",
        "para",
        "con",
        "le",
        "les",
        "des",
        "du",
        "et",
        "est",
        "une",
        "dans",
        "pour",
        "der",
        "die",
        "das",
        "und",
        "ist",
        "ein",
        "eine",
        "nicht",
        "ich",
        "mit",
        "il",
        "di",
        "che",
        "per",
    ]
)
_CODE_LINE = re.compile(
    r"[{};][ \t]*$|^[ \t]*(?:def|class|import|from|return|for|while|if|else|elif|try|print|var|let|const|"
    r"public|private|function|#include|SELECT|INSERT|UPDATE|DELETE|CREATE|ALTER|WITH)\b|"
    r"\w\(|[=<>]=|\w[ \t]*=[ \t]*\S|=>|->|^[ \t]*(?://|#|<)|\w\[",
    re.MULTILINE,
)
# How Korean sentences end, however many foreign names stand in them.
_KOREAN_ENDINGS = ("니다", "세요", "아요", "어요", "해요", "이다", "하다", "였다", "했다", "된다")
# What makes a foreign answer the right one, in lower case. One search a word is faster than a pattern of all.
_ASKED = (
    "영어",
    "영문",
    "영작",
    "번역",
    "외국어",
    "알파벳",
    "철자",
    "스페인",
    "프랑스",
    "불어",
    "독일",
    "일본",
    "중국",
    "한자",
    "라틴",
    "이탈리아",
    "러시아",
    "포르투갈",
    "아랍",
    "네덜란드",
    "히브리",
    "그리스",
    "언어",
    "코드",
    "코딩",
    "함수",
    "쿼리",
    "구문",
    "스크립트",
    "프로그램",
    "알고리즘",
    "정규",
    "파이썬",
    "자바",
    "태그",
    "명령어",
    "두문자",
    "약어",
    "애너그램",
    "sql",
    "html",
    "css",
    "json",
    "xml",
    "python",
    "java",
    "c++",
)
_ASKED_C = re.compile(r"\bc\b")
# One byte of the UTF-8 of each letter tells its script; the rest of the bytes are dropped.
_OTHERS = bytes(set(range(256)) - set(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
_LATIN_LEADS = bytes(range(0xC3, 0xCA))  # U+00C0-027F
_HANGUL_LEADS = bytes(range(0xEA, 0xEE))  # U+A000-DFFF
_OTHER_LEADS = bytes([*range(0xCD, 0xE2), *range(0xE3, 0xEA)])  # Greek to Thai, kana, Han
_MARKS = ("`", "<", "http", "www.", "@")  # without one there is nothing but prose
_MANY = 20  # letters, below which an answer says nothing about its language
_ENOUGH = 1000  # characters that tell the language of all
_MOSTLY = 0.3  # of an answer's letters: with less Hangul it is mostly foreign


def is_untranslated(instruction: str, context: str, response: str) -> bool:
    """Is the answer mostly not Korean, though nothing asked for that?"""
    length = len(response)
    if length < _MANY:
        return False
    latin, hangul, others = _scripts(response)
    if 10 * hangul >= 3 * (latin + hangul + others):  # fastscan says so too
        return False
    beginning = response[:_ENOUGH]
    if any(ending in beginning for ending in _KOREAN_ENDINGS) or response in context:
        return False
    if _HANGUL.search(instruction) and _asks_for_foreign(instruction.lower()):
        return False
    return _is_foreign(response) and not _is_about_foreign(instruction, context)


def _is_foreign(text: str) -> bool:
    """Is it running text, and most of it in another script than Hangul? Its beginning tells."""
    text = text[:_ENOUGH]
    if "</" in text:  # a page is code
        return False
    prose = _NOT_PROSE.sub(" ", text) if any(mark in text for mark in _MARKS) else text
    latin, hangul, others = _scripts(prose)
    letters = latin + hangul + others
    if letters < _MANY or hangul >= _MOSTLY * letters:
        return False
    if latin < letters / 2:
        return True
    words = prose.lower().split()
    if sum(word in _SENTENCE for word in words) * 6 < len(words):
        return False
    lines = prose.count("\n") + 1
    signs = islice(_CODE_LINE.finditer(prose), (lines + 1) // 2)  # as many as make it code
    return sum(1 for _ in signs) * 2 < lines


def _asks_for_foreign(instruction: str) -> bool:
    return any(word in instruction for word in _ASKED) or bool(_ASKED_C.search(instruction))


def _scripts(text: str) -> tuple[int, int, int]:
    """Letters of Latin, of Hangul and of other scripts, counted by bytes: a regex would take ten times as long."""
    data = text.encode("utf-8", "replace")

    def count(leads: bytes) -> int:
        return len(data) - len(data.translate(None, leads))

    latin = len(data.translate(None, _OTHERS)) + count(_LATIN_LEADS)
    return latin, count(_HANGUL_LEADS), count(_OTHER_LEADS)


def _is_about_foreign(instruction: str, context: str) -> bool:
    """Is the task a Korean question about a foreign text?"""
    if not _HANGUL.search(instruction):
        return False
    return _is_foreign(context) or _is_foreign(instruction)
