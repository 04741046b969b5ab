"""Says what a file is that has no records of a known source, so that a person knows what to do about it."""

from __future__ import annotations

import json
import re

from .tars import MAGIC
from .text_encoding import CONTROL

# What `save_to_disk` and the hub write beside the data.
SIDE_FILES = ("state.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
SIDE_FILE = "describes a saved data set and holds no rows"
INNER = "is an archive in a pipe or in another archive: give its path instead, or unpack it first"
KINDS = (
    (rb"version https://git-lfs", "is a Git LFS pointer, not the data: run `git lfs pull`"),
    (rb"\s*(?i:<!doctype html|<html|<head|<body)", "is an HTML page, not the data: fetch it again"),
    (rb"\s*<\?xml", "is XML, which no source has"),
    (rb"PK[\x03\x05]", INNER),
    (rb"7z\xbc\xaf'\x1c|Rar!", "is a 7z or RAR archive: unpack it first"),
    (rb"\x04\x22M\x18", "is packed with lz4: unpack it first"),
    (rb"\xd0\xcf\x11\xe0", "is an old Office or HWP document: save it as CSV or text"),
    (rb"%PDF", "is a PDF"),
)


def is_side_file(name: str) -> bool:
    """Is a file of this name no data, but about data?"""
    return name.replace("!", "/").rpartition("/")[2] in SIDE_FILES


def what_is(head: bytes, *, has_record: bool) -> str:
    """What a file that begins with `head` (all of it, if it is short) is; "" for JSON and tables with records."""
    for pattern, what in KINDS:
        if re.match(pattern, head):
            return what
    if head[MAGIC] == b"ustar":
        return INNER
    text = head.removeprefix(b"\xef\xbb\xbf").strip()
    if not text:
        return "is empty" if not head else "holds nothing but white space"
    if 0 in head[:4096] or CONTROL.search(head, 0, 4096):
        return "is a binary file of no kind that can be read here"
    if has_record or text[:1] not in b"[{":
        return ""
    return _what_json_is(text, len(head) - len(head.lstrip(b"\xef\xbb\xbf \t\r\n")))


def _what_json_is(text: bytes, before: int) -> str:
    """What JSON without records is, `before` bytes from the file's beginning."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if re.match(rb"\[\s*[^\s{\[]", text):
            return "is a list of single values, not of records"
        at = before + len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
        return f"is not JSON from byte {at} on: {error.msg}"
    except (ValueError, RecursionError):
        return ""
    if not value:
        return "is an empty list" if isinstance(value, list) else "is an empty object"
    return "is a list without records" if isinstance(value, list) else "is JSON without records"
