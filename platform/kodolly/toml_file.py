"""A TOML file whose errors name the line: tomllib does not tell where a value stands."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kodolly.errors import SettingsError


@dataclass(frozen=True)
class TomlFile:
    """The content of a file. `table`: parsed; `text`: as it was written."""

    path: Path
    table: Mapping[str, Any]
    text: str

    def line_of(self, section: str, key: str | None = None) -> int:
        """Line number, from 1, of `key` in `[section]`.

        Without `key`: of the section's own head, or of the key `section` outside of all tables.
        """
        name = rf"[\"']?{re.escape(section)}[\"']?"
        opening = re.compile(rf"\s*(\[+\s*{name}\s*[\].]|{name}\s*[=.])")
        inside = False
        for number, line in enumerate(self.text.splitlines(), 1):
            if key is None and opening.match(line):
                return number
            if head := re.match(r"\s*\[([^\[\]]+)\]", line):
                inside = head[1].strip().strip("\"'") == section
            elif inside and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return number
        return 1


def read_toml(path: Path, setting: str) -> TomlFile:
    """Reads a file. `setting`: what names it, such as a flag. Raises SettingsError, which names the file."""
    try:
        text = path.read_text(encoding="utf-8")
        return TomlFile(path, tomllib.loads(text), text)
    except OSError as error:
        raise SettingsError(f"{setting}: cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # bad TOML names its line; bad UTF-8 its byte
        raise SettingsError(f"{path}: {error}") from error
