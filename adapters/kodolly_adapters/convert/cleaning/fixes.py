"""Fixes of one text, each a pure function that returns the text itself where nothing is to fix."""

from __future__ import annotations

import re
import unicodedata
from html import unescape
from html.entities import html5

# Code keeps its entities: ``` fences (the last may be open) and `inline code` of one line. An ampersand escaped
# over and over (`&amp;amp;lt;`) is one.
_CODE_OR_ENTITY = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|"
    r"&(?:(?:amp|#38|#[xX]26);)*"
    r"(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});",
    re.DOTALL,
)
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
_LEADING_COLON = re.compile(r"(?::\s+)+")

# How translation left "no input" behind: DeepL reads <noinput> as "<elderly input>".
_NO_INPUT = frozenset(
    {
        "입력없음",
        "입력필요없음",
        "입력이없습니다",
        "입력이필요하지않습니다",
        "노인입력",
        "닌입력",
        "noinput",
        "n/a",
    }
)
_NO_INPUT_LENGTH = 24
_AROUND = "<>[]()\"'`."
# Whatever a context begins with that no_input_marker empties.
NO_INPUT_HEADS = frozenset(
    char for text in _NO_INPUT for char in (text[0], text[0].upper())
) | frozenset(_AROUND)


def nfc(text: str) -> str:
    """Composed Unicode: one character a syllable."""
    return unicodedata.normalize("NFC", text)


def newlines(text: str) -> str:
    """LF for CRLF and CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def bom(text: str) -> str:
    """Without byte order marks at the start."""
    return text.lstrip("\ufeff")


def _entity(match: re.Match[str]) -> str:
    name = match[1]
    if name is None:  # code
        return match[0]
    if name == "nbsp":  # in HTML a way to write a space, not a choice of character
        return " "
    if name[0] == "#":
        return unescape(f"&{name};")
    return html5.get(f"{name};", f"&{name};")


def entities(text: str) -> str:
    """The characters that entities outside code name; one without its semicolon may be a URL's `&copy=`."""
    return _CODE_OR_ENTITY.sub(_entity, text) if "&" in text else text


def _pictograph(char: str) -> bool:
    return "\u2190" <= char <= "\u2bff" or char == "\ufe0f" or "\U0001f000" <= char <= "\U0001faff"


def _joins(text: str, at: int) -> bool:
    """Does the joiner there shape what stands around it: an emoji sequence, Arabic or Indic letters?"""
    if not 0 < at < len(text) - 1:
        return False
    before, after = text[at - 1], text[at + 1]
    if text[at] == "\u200d" and _pictograph(before) and _pictograph(after):
        return True
    return text[at] in "\u200c\u200d" and "\u0600" <= before <= "\u109f" and after.isalpha()


def zero_width(text: str) -> str:
    """Without invisible characters, but for joiners that shape letters or emoji."""
    return _INVISIBLE.sub(lambda match: match[0] if _joins(text, match.start()) else "", text)


def outer_space(text: str) -> str:
    """Without white space around it."""
    return text.strip()


def no_input_marker(context: str) -> str:
    """Empty where the context only says that there is none."""
    if len(context) > _NO_INPUT_LENGTH:
        return context
    bare = "".join(context.split()).strip(_AROUND).casefold()
    return "" if bare in _NO_INPUT else context


def leading_colon(response: str) -> str:
    """Without the colon a translated "Output:" leaves; `:hover` and `:)` keep theirs."""
    if not response.startswith(":"):
        return response
    found = _LEADING_COLON.match(response)
    return response[found.end() :] if found else response
