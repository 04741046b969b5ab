"""Guesses a text's encoding from its beginning: UTF-8, UTF-16, or CP949 (of which EUC-KR is a part)."""

from __future__ import annotations

import codecs
import re

MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")  # texts have none of them
SYLLABLE = re.compile("[가-힣]")
NOT_ASCII_LETTER = re.compile(r"[^\W\d_a-zA-Z]")
# In CP949 text, this share of the letters that are not ASCII are Hangul syllables.
MIN_HANGUL = 0.8
MAX_BROKEN = 0.1  # share of those letters that may be undecodable
BROKEN = "\ufffd"


def encoding_of(head: bytes, *, is_whole: bool) -> str | None:
    """The codec of a text that begins with `head`; None: it is text in none of the encodings known here.

    Files that are no text at all count as "utf-8". `is_whole` says that the text ends where `head` does.
    """
    for mark, codec in MARKS.items():
        if head.startswith(mark):
            return codec
    if 0 in head[:4096]:
        return _wide(head[:4096])

    def decode(codec: str) -> str:
        return codecs.getincrementaldecoder(codec)("replace").decode(head, is_whole)

    text = decode("utf-8")
    broken = text.count(BROKEN)
    if not broken or CONTROL.search(head, 0, 4096):
        return "utf-8"
    korean = decode("cp949")
    letters = len(NOT_ASCII_LETTER.findall(korean))
    korean_broken = korean.count(BROKEN)
    if korean_broken < broken and korean_broken <= MAX_BROKEN * letters:
        # Only those of EUC-KR: the other 8,822 of CP949 are rare in Korean, but what Shift-JIS looks like.
        syllables = len(SYLLABLE.findall(decode("euc_kr")))
        if syllables >= MIN_HANGUL * letters:
            return "cp949"
    is_utf8 = broken < 8 or broken < len(NOT_ASCII_LETTER.findall(text))
    return "utf-8" if is_utf8 else None


def _wide(head: bytes) -> str:
    """UTF-16 without a byte order mark has zeros in ASCII characters: all in odd or all in even places."""
    even, odd = head[::2].count(0), head[1::2].count(0)
    codec, many, few = ("utf-16-le", odd, even) if odd > even else ("utf-16-be", even, odd)
    text = head.decode(codec, "replace")
    is_text = not CONTROL.search(text.encode("utf-8", "replace")) and "\0" not in text
    return codec if is_text and many > len(head) / 20 and few <= many / 20 else "utf-8"


def mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    """Error handler: what cannot be decoded becomes one byte 0xFF (with surrogateescape), which UTF-8 never has."""
    assert isinstance(error, UnicodeDecodeError)
    return "\udcff", error.end


codecs.register_error("kodolly.mark_undecodable", mark_undecodable)


class Recoder:
    """Turns bytes of another encoding into UTF-8, piece by piece."""

    def __init__(self, codec: str) -> None:
        self._decoder = codecs.getincrementaldecoder(codec)("kodolly.mark_undecodable")

    def utf8(self, data: bytes) -> bytes:
        """The next bytes in UTF-8; b"" says that the text ends."""
        return self._decoder.decode(data, not data).encode("utf-8", "surrogateescape")
