"""Fixes of one text: pure functions that return the text itself where nothing is to be fixed."""

from __future__ import annotations

import re
import unicodedata
from html import unescape
from html.entities import html5

from .rules import table

# Code keeps its entities: ``` fences (the last may be open) and `inline code` of one line. An ampersand that was
# escaped several times (`&amp;amp;lt;`) is one entity.
_CODE_OR_ENTITY = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]+`|"
    r"&(?:(?:amp|#38|#[xX]26);)*"
    r"(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});",
    re.DOTALL,
)
_INVISIBLE = re.compile("[\u200b-\u200f\u2060\ufeff\u00ad]")
_LEADING_COLON = re.compile(r"(?::\s+)+")
_LONGEST_MARKER = 24  # characters of a context that says "no input"


def nfc(text: str) -> str:
    """Composed Unicode: one character a syllable."""
    return unicodedata.normalize("NFC", text)


def newlines(text: str) -> str:
    """LF for CRLF and CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def bom(text: str) -> str:
    """No byte order marks at the start."""
    return text.lstrip("\ufeff")


def entities(text: str) -> str:
    """HTML entities outside code as characters; one without semicolon may be part of a URL (`&copy=`)."""
    return _CODE_OR_ENTITY.sub(_entity, text) if "&" in text else text


def _entity(match: re.Match[str]) -> str:
    name = match[1]
    if name is None:  # code
        return match[0]
    if name == "nbsp":  # in HTML a way to write a space, not a choice of character
        return " "
    if name[0] == "#":
        return unescape(f"&{name};")
    return html5.get(f"{name};", f"&{name};")


def zero_width(text: str) -> str:
    """No invisible characters, except joiners that shape letters or emoji."""
    return _INVISIBLE.sub(lambda match: match[0] if _joins(text, match.start()) else "", text)


def _joins(text: str, at: int) -> bool:
    """Does the character there join an emoji sequence, or Arabic or Indic letters?"""
    if not 0 < at < len(text) - 1:
        return False
    before, after = text[at - 1], text[at + 1]
    if text[at] == "\u200d" and _is_pictograph(before) and _is_pictograph(after):
        return True
    return text[at] in "\u200c\u200d" and "\u0600" <= before <= "\u109f" and after.isalpha()


def _is_pictograph(char: str) -> bool:
    return "\u2190" <= char <= "\u2bff" or char == "\ufe0f" or "\U0001f000" <= char <= "\U0001faff"


def outer_space(text: str) -> str:
    """No white space around the text."""
    return text.strip()


def no_input_marker(context: str) -> str:
    """Empty where the context only says that there is no input."""
    if not context or len(context) > _LONGEST_MARKER:
        return context
    bare = "".join(context.split()).strip("<>[]()\"'`.").casefold()
    return "" if bare in table("words.toml")["no_input"] else context


def leading_colon(response: str) -> str:
    """No colon left over from a translated "Output:"; `:hover` and `:)` keep theirs."""
    match = _LEADING_COLON.match(response) if response.startswith(":") else None
    return response[match.end() :] if match else response
