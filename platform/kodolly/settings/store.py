"""The settings of the store: those of `kodolly api`, which `kodolly store` reads too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

from kodolly.errors import SettingsError
from kodolly.options import Section, option, without_password

STORE_FILE = "store.sqlite3"
NO_STORE = "none"


@dataclass(frozen=True)
class StoreSettings(Section):
    """Where responses are kept, and how long."""

    section: ClassVar[str] = "api"

    store: str = option(
        f"sqlite:///.kodolly/{STORE_FILE}",
        "where stored responses are: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DATABASE, or none",
        secret_url=True,
    )
    store_ttl: float = option(
        30 * 86_400.0, "seconds that a stored response or conversation is kept", minimum=60
    )
    store_owner_bytes: int = option(
        2**30,
        "bytes that one client key may keep; beyond, its oldest responses go (0: any number)",
        minimum=0,
    )

    def store_url(self) -> str | None:
        """The store's URL; None for no store. Raises SettingsError."""
        return None if self.store == NO_STORE else checked_store_url("--store", self.store)


def checked_store_url(flag: str, url: str) -> str:
    """The URL if it is one of a SQLite file or of PostgreSQL. Raises SettingsError, which names `flag`."""
    scheme, _, rest = url.partition("://")
    try:
        parts = urlsplit(url)
        is_right = {
            "sqlite": rest.startswith("/") and len(rest) > 1 and "?" not in rest,
            "postgresql": bool(parts.hostname or parts.query) and len(parts.path) > 1,
        }.get(scheme, False)
        _ = parts.port
    except ValueError:
        is_right = False
    if not is_right or "\0" in url:
        raise SettingsError(
            f"{flag}: {without_password(url)!r} is not a store: give sqlite:///FILE (a fourth / before"
            " an absolute path), postgresql://USER:PASSWORD@HOST/DATABASE, or none"
        )
    return url
