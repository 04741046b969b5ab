"""Keys and tokens: which are usable, and how they are read from files.

A secret travels in an HTTP header. So it is printable ASCII without spaces; anything else would be refused with
every request, or compared to something that no client can send.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kodolly.errors import SettingsError


def require_filled(value: Any, name: str) -> None:
    """Raises SettingsError for an empty or blank setting, or a list of nothing else."""
    texts = value if isinstance(value, tuple) else (value,)
    if not any(str(text).strip() for text in texts):
        raise SettingsError(f"{name} is empty: give it a value, or remove it")


def check_secret(value: Any, name: str) -> None:
    """Raises SettingsError, without the value, for a secret (or a list of them) that cannot be used.

    `name`: the setting and where it was set, such as `environment KODOLLY_TOKEN: token`.
    """
    require_filled(value, name)
    for text in value if isinstance(value, tuple) else (value,):
        if not all("!" <= character <= "~" for character in str(text)):
            raise SettingsError(
                f"{name} holds a space, a control character or one that is not ASCII: a key or token"
                " is made of letters, digits and signs such as - and _"
            )


def read_keys(name: str, path: str) -> tuple[str, ...]:
    """The keys in a file, one a line. Blank lines, and comments that begin with #, are no keys.

    `name`: the setting that names the file. Raises SettingsError for a file that cannot be read, has
    no key, or has one that cannot be used.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"{name}: cannot read {path}: {reason}") from error
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        key = line.strip()
        if key and not key.startswith("#"):
            check_secret(key, f"{name}: {path}:{number}")
            keys.append(key)
    if not keys:
        raise SettingsError(
            f"{name}: {path} is empty: it has no key in it, only blanks or comments"
        )
    return tuple(keys)


def read_secret(name: str, path: str) -> str:
    """The one key in a file. Raises SettingsError as `read_keys` does, and if there are several."""
    keys = read_keys(name, path)
    if len(keys) > 1:
        raise SettingsError(f"{name}: {path} holds {len(keys)} lines: it must be one secret")
    return keys[0]
