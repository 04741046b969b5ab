"""Which web pages may send requests to a process: those it serves itself, and those on a list.

A page that an operator has open somewhere can send requests to every server that the browser reaches, loopback
included. Browsers name the page, by Origin and Sec-Fetch-Site, which no page can forge; other clients send neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from kodolly.errors import BadRequest, ForeignOrigin, SettingsError

Headers = Sequence[tuple[bytes, bytes]]

OWN_SITE = (b"same-origin", b"none")  # a page of ours; typed in, or opened from a bookmark
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s@]+")
SHOWN = 100  # characters of a refused origin that the message repeats


class AllowedOrigins:
    """The origins, such as https://app.example.com, whose pages may call; `*` is any."""

    def __init__(self, origins: Iterable[str] = ()) -> None:
        """Raises SettingsError for an origin that no request could have."""
        given = {origin.strip().lower().removesuffix("/") for origin in origins}
        for origin in given - {"*"}:
            if not ORIGIN.fullmatch(origin) or not origin.isascii():
                raise SettingsError(
                    f"allowed_origins: {origin!r} is no origin: write it as https://HOST or"
                    " http://HOST:PORT, without a path (a Korean host name in its xn-- form)"
                )
        self._any = "*" in given
        self._origins = frozenset(origin.encode() for origin in given)

    def check(
        self, method: str, host: bytes, origin: bytes | None, site: bytes | None, headers: Headers
    ) -> bytes | None:
        """The foreign origin that is allowed to call; None for a page of ours, or no page at all.

        `host`, `origin`, `site`: the headers Host, Origin and Sec-Fetch-Site. Raises ForeignOrigin.
        """
        if site in OWN_SITE or (origin is None and site is None):
            return None
        if origin is None:
            if method in ("GET", "HEAD") and _is_followed_link(headers):
                return None
            raise ForeignOrigin(_refusal("another site", "ORIGIN"))
        if self._any or origin.lower() in self._origins:
            return origin
        # Browsers send no Sec-Fetch-Site to a plain http server on another machine.
        if site is None and host and origin.lower().partition(b"://")[2] == host.lower():
            return None
        shown = ascii(origin.decode("latin-1")[:SHOWN])[1:-1]
        raise ForeignOrigin(_refusal(shown, shown))


def only(value: bytes | None, name: str) -> None:
    """Raises BadRequest if a header that must come once has come before."""
    if value is not None:
        raise BadRequest(f"The request has more than one {name} header.")


def _refusal(page: str, origin: str) -> str:
    return (
        f"Pages of {page} may not call this server. The API takes their calls if it is started with"
        f" --allowed-origins {origin} (environment KODOLLY_API_ALLOWED_ORIGINS)."
    )


def _is_followed_link(headers: Headers) -> bool:
    """Whether a page opens in a window of its own, unlike an image, a script or a frame."""
    values = dict(headers)
    return (
        values.get(b"sec-fetch-mode") == b"navigate"
        and values.get(b"sec-fetch-dest") == b"document"
    )
