"""Fixes of one text, each a rule of its own, and what applies them until nothing changes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from html import unescape
from html.entities import html5

from .personal_data import mask
from .rules import COUNT, OFF, table

Fix = Callable[[str], str]

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
_MAX_PASSES = 8  # more are needed only where entities are nested in entities on purpose


def newlines(text: str) -> str:
    """LF for CRLF and CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


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


# Every fix of any text with the characters that give it work, if it can be told by those. In the order they are
# applied; one can make work for another: a decoded entity may be a zero-width space.
_FIXES: dict[str, tuple[Fix, str]] = {
    "entities": (entities, "&"),
    "newlines": (newlines, "\r"),
    "bom": (lambda text: text.lstrip("\ufeff"), "\ufeff"),
    "zero-width": (zero_width, "\u200b-\u200f\u2060\ufeff\u00ad"),
    "nfc": (lambda text: unicodedata.normalize("NFC", text), ""),
    "outer-space": (str.strip, ""),
    "personal-data": (mask, "0-9@"),
}
_OF_A_FIELD: dict[str, tuple[str, Fix]] = {
    "context": ("no-input-marker", no_input_marker),
    "response": ("leading-colon", leading_colon),
}


class Unstable(Exception):
    """Every pass over the text changes it again."""


class Fixer:
    """Applies the fixes whose rules are on in `modes`."""

    def __init__(self, modes: Mapping[str, str]) -> None:
        self._modes = modes
        on = {rule: fix for rule, fix in _FIXES.items() if modes[rule] != OFF}
        self._fixes = [(rule, fix) for rule, (fix, _) in on.items()]
        self._own = {field: fix for field, fix in _OF_A_FIELD.items() if modes[fix[0]] != OFF}
        signs = "".join(signs for _, signs in on.values())
        self._has_sign = re.compile(f"[{signs}]" if signs else "(?!)").search

    def fix(self, text: str, field: str, fired: set[str]) -> str:
        """The text after all fixes of its field; the rules that fire are added to `fired`.

        Rules that only count leave the text. Raises Unstable.
        """
        own = self._own.get(field)
        if not text or (
            not self._has_sign(text)
            and text.strip() == text
            and unicodedata.is_normalized("NFC", text)
            and (own is None or own[1](text) == text)
        ):
            return text
        fixes = self._fixes if own is None else [*self._fixes, own]
        for _ in range(_MAX_PASSES):
            before = text
            for rule, fix in fixes:
                result = fix(text)
                if result != text:
                    fired.add(rule)
                    if self._modes[rule] != COUNT:
                        text = result
            if text == before:
                return text
        raise Unstable
