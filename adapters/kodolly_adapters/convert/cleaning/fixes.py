"""The fixes of one text, each a rule of its own; the Fixer applies them until nothing changes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from html import unescape
from html.entities import html5

from .personal_data import mask
from .rules import COUNT, OFF, table

Fix = Callable[[str], str]

# Matches an entity, or code, in which entities stay: ``` fences (the last may be unclosed) and `inline code` of one
# line. Something escaped several times, such as `&amp;amp;lt;`, is one entity.
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
    """The text with LF for CRLF and CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def entities(text: str) -> str:
    """The text with the characters for HTML entities outside code; `&copy=` (in a URL) is no entity."""
    return _CODE_OR_ENTITY.sub(_entity, text) if "&" in text else text


def _entity(match: re.Match[str]) -> str:
    name = match[1]
    if name is None:  # code
        return match[0]
    if name == "nbsp":  # those who write it in HTML mean a plain space
        return " "
    if name[0] == "#":
        return unescape(f"&{name};")
    return html5.get(f"{name};", f"&{name};")


def zero_width(text: str) -> str:
    """The text without invisible characters, except joiners that shape letters or emoji."""
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
    """The context; "" where it only says that there is no input."""
    if not context or len(context) > _LONGEST_MARKER:
        return context
    bare = "".join(context.split()).strip("<>[]()\"'`.").casefold()
    return "" if bare in table("words.toml")["no_input"] else context


def leading_colon(response: str) -> str:
    """The response without the colon of a translated "Output:"; `:hover` and `:)` keep theirs."""
    match = _LEADING_COLON.match(response) if response.startswith(":") else None
    return response[match.end() :] if match else response


# The fixes of every text in the order they are applied, each with the characters that it looks for ("": it cannot
# be told by characters). One can make another necessary: a decoded entity may be a zero-width space.
_FIXES: dict[str, tuple[Fix, str]] = {
    "entities": (entities, "&"),
    "newlines": (newlines, "\r"),
    "bom": (lambda text: text.lstrip("\ufeff"), "\ufeff"),
    "zero-width": (zero_width, "\u200b-\u200f\u2060\ufeff\u00ad"),
    "nfc": (lambda text: unicodedata.normalize("NFC", text), ""),
    "outer-space": (str.strip, ""),
    "personal-data": (mask, "0-9@"),
}
_FIELD_FIXES: dict[str, tuple[str, Fix]] = {
    "context": ("no-input-marker", no_input_marker),
    "response": ("leading-colon", leading_colon),
}


class Unstable(Exception):
    """The text still changes after _MAX_PASSES passes."""


class Fixer:
    """Applies the fixes whose rules are on in `modes`."""

    def __init__(self, modes: Mapping[str, str]) -> None:
        self._modes = modes
        active = {rule: fix for rule, fix in _FIXES.items() if modes[rule] != OFF}
        self._fixes = [(rule, fix) for rule, (fix, _) in active.items()]
        self._by_field = {name: fix for name, fix in _FIELD_FIXES.items() if modes[fix[0]] != OFF}
        triggers = "".join(characters for _, characters in active.values())
        self._has_trigger = re.compile(f"[{triggers}]" if triggers else "(?!)").search

    def fix(self, text: str, field: str, hits: set[str]) -> str:
        """The text after all fixes of its field; the names of rules that applied are added to `hits`.

        A rule in mode count leaves the text as it is. Raises Unstable.
        """
        field_fix = self._by_field.get(field)
        if not text or (
            not self._has_trigger(text)
            and text.strip() == text
            and unicodedata.is_normalized("NFC", text)
            and (field_fix is None or field_fix[1](text) == text)
        ):
            return text
        fixes = self._fixes if field_fix is None else [*self._fixes, field_fix]
        for _ in range(_MAX_PASSES):
            before = text
            for rule, fix in fixes:
                result = fix(text)
                if result != text:
                    hits.add(rule)
                    if self._modes[rule] != COUNT:
                        text = result
            if text == before:
                return text
        raise Unstable
