"""Which licence a file has: what the name of its set says, or what is stated beside it; never a guess by its shape.

Stated is what a `README.md` says in the head that the Hugging Face hub reads, `license` in a `dataset_info.json`, or
the beginning of a licence text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from kodolly_adapters.errors import InputError

from .inputs import Member, open_member
from .source import UNKNOWN, Licence

BYTES = 64 << 10  # read of a file that may state a licence
README, INFOS = "README.md", ("dataset_info.json", "dataset_infos.json")
# A licence of the data goes before one that may be that of the code beside it.
FILES = (
    README,
    *INFOS,
    "DATA_LICENSE",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "LICENCE",
    "License.md",
)
FREE = {
    "mit",
    "apache-2.0",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc0-1.0",
    "odc-by",
    "pddl",
    "unlicense",
}
HEAD = re.compile(r"\A\s*---\s*\n(.*?)\n---", re.DOTALL)
HEAD_LICENCE = re.compile(r"^license:[ \t]*(?:\n[ \t]*-)?[ \t\[\"']*([\w.+-]+)", re.MULTILINE)
# How a licence text begins, and the hub's name of that licence; {} is its version.
TEXTS = (
    (r"\bMIT License\b|Permission is hereby granted, free of charge", "mit"),
    (r"Apache License\s+Version 2\.0", "apache-2.0"),
    (r"CC0 1\.0 Universal", "cc0-1.0"),
    (r"Attribution-NonCommercial-NoDeriv\w+ (\d\.\d)", "cc-by-nc-nd-{}"),
    (r"Attribution-NonCommercial-ShareAlike (\d\.\d)", "cc-by-nc-sa-{}"),
    (r"Attribution-NonCommercial (\d\.\d)", "cc-by-nc-{}"),
    (r"Attribution-NoDeriv\w+ (\d\.\d)", "cc-by-nd-{}"),
    (r"Attribution-ShareAlike (\d\.\d)", "cc-by-sa-{}"),
    (r"Attribution (\d\.\d)", "cc-by-{}"),
)


def creative_commons(terms: str, consequence: str = "") -> Licence:
    """The licence with these terms, e.g. "BY-ND 2.0 KR": NC forbids commercial use, ND derivatives."""
    return Licence(
        f"CC {terms}",
        f"https://creativecommons.org/licenses/{terms.lower().replace(' ', '/')}/",
        commercial="NC" not in terms,
        derivatives="ND" not in terms,
        consequence=consequence or "Read its terms: the authors must be named.",
    )


def named(name: str) -> Licence:
    """The licence of a name as the hub writes it (`cc-by-nc-4.0`, `mit`) or as people do (`CC BY-NC 4.0`)."""
    slug = name.strip().lower().replace(" ", "-")
    if slug in ("", "unknown", "none"):
        return UNKNOWN
    if match := re.fullmatch(r"cc-(by(?:-nc)?(?:-sa|-nd)?)-(\d\.\d)(-\w\w)?", slug):
        kind, version, country = match.groups(default="")
        return creative_commons(f"{kind} {version}{country.replace('-', ' ')}".upper())
    is_free = True if slug in FREE else None
    return Licence(name.strip(), "", is_free, is_free, "Read its terms.")


class StatedLicences:
    """The licences stated beside the files of a run; `members` are all of them. Reads each statement once."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = {member.name: member for member in members}
        self._read: dict[str, Licence | None] = {}

    def of(self, member: Member) -> tuple[Licence, str]:
        """The licence of a file and the name of the file that states it; UNKNOWN and "" where none does.

        Of several folders the nearest counts, up to the SOURCE argument.
        """
        for place in _beside(member, self._members):
            key = str(place.path) if place.zip_member is None else place.name
            if key not in self._read:
                self._read[key] = _licence_in(place)
            if licence := self._read[key]:
                return licence, _file_name(place)
        return UNKNOWN, ""


def _file_name(member: Member) -> str:
    return member.name.replace("!", "/").rpartition("/")[2]


def _beside(member: Member, members: Mapping[str, Member]) -> Iterator[Member]:
    """Files that may state the licence, the nearest first: in the archive or folder, then beside the argument."""
    folder = member.name
    while folder:
        folder = re.sub(r"[^/!]*[/!]?\Z", "", folder, count=1)
        yield from (members[folder + name] for name in FILES if folder + name in members)
    if member.path is not None:
        paths = (member.path.parent / name for name in FILES)
        yield from (Member(path.name, path) for path in paths if path.is_file())


def _licence_in(place: Member) -> Licence | None:
    """The licence that a file states, if it does."""
    try:
        with open_member(place) as stream:
            text = stream.peek(BYTES).decode("utf-8", "replace")
    except InputError:
        return None
    name, slug = _file_name(place), ""
    if name == README:
        head = HEAD.search(text)
        match = HEAD_LICENCE.search(head[1]) if head else None
        slug = match[1] if match else ""
    elif name in INFOS:
        slug = _of_info(text)
    else:
        matches = ((re.search(pattern, text[:2000]), name) for pattern, name in TEXTS)
        slug = next((name.format(*match.groups()) for match, name in matches if match), "")
    licence = named(slug)
    return None if licence == UNKNOWN else licence


def _of_info(text: str) -> str:
    """The licence in the description that `datasets` writes, or the first of those of several configurations."""
    try:
        info = json.loads(text)
    except ValueError:
        return ""
    entries = [info, *info.values()] if isinstance(info, dict) else []
    licences = [entry.get("license") for entry in entries if isinstance(entry, dict)]
    return next((one for one in licences if isinstance(one, str) and one), "")
