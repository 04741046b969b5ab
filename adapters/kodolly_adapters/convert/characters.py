"""What each character is to the fast scan, as tables it looks up."""

from __future__ import annotations

import unicodedata

import numpy as np

from .cleaning.rules import table as table_of
from .fastscan import ENTITY, ESCAPE, HANGUL, PLAIN, QUOTE, SPACE, TROUBLE, Bytes


def kinds() -> Bytes:
    """What each character of the basic plane is, shape (65536,).

    PLAIN are those alone that stay as they are in NFC whatever stands beside them.
    """
    table = np.full(1 << 16, PLAIN, np.uint8)
    for code in range(1 << 16):
        char = chr(code)
        parts = unicodedata.decomposition(char).split()
        if len(parts) == 2 and parts[0][0] != "<":
            table[int(parts[1], 16)] = TROUBLE  # it composes with what stands before it
        if char.isspace():
            table[code] = SPACE
        odd = code < 0x20 or unicodedata.category(char) in ("Cs", "Cn", "Co", "Cf")
        if odd or unicodedata.combining(char) or not unicodedata.is_normalized("NFC", char):
            table[code] = TROUBLE
    table[0x1100:0x1200] = TROUBLE  # jamo compose with one another
    table[0xAC00:0xD7A4] = HANGUL
    for char in "\x7f\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad":
        table[ord(char)] = TROUBLE
    table[ord('"')], table[ord("\\")], table[ord("&")] = QUOTE, ESCAPE, ENTITY
    return table


def heads() -> Bytes:
    """1 for each character of the basic plane that may begin a mark of "no input", shape (65536,)."""
    table = np.zeros(1 << 16, np.uint8)
    for marker in table_of("words.toml")["no_input"]:
        table[ord(marker[0])] = table[ord(marker[0].upper())] = 1
    for char in "<>[]()\"'`.":
        table[ord(char)] = 1
    return table
