"""Base URLs of workers, engines and controllers: checked, and in one spelling for one address."""

from __future__ import annotations

import ipaddress
import re
import socket
from functools import lru_cache
from urllib.parse import SplitResult, urlsplit

PORTS = {"http": 80, "https": 443}  # what a URL without a port means
LAST_PORT = 65535
LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
HOST_NAME = re.compile(rf"(?=.{{1,253}}$){LABEL}(?:\.{LABEL})*")
# A host whose last label is a number is an IPv4 address, however it is written (`127.1`, `0x7f.1`).
ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*")
VISIBLE = re.compile(r"[!-~]+")


class AddressError(ValueError):
    """A text is no usable base URL. The message says what is wrong with it."""


def base_url(host: str, port: int, scheme: str = "http") -> str:
    """The base URL of a host, which may be an IPv6 address, and a port."""
    return f"{scheme}://{host_in_url(host)}:{port}"


def host_in_url(host: str) -> str:
    """A host as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


@lru_cache(maxsize=8192)
def canonical_url(text: str, *, with_path: bool = False) -> str:
    """A base URL in the one spelling that all others of the same address are turned into.

    Scheme and host in lower case, IP addresses in their usual form, no port that the scheme implies,
    no dot at the host's end, no slash at the URL's. Names are not looked up: `localhost` stays another address than 127.0.0.1.
    `with_path`: a path is allowed, for a server behind a prefix. Raises AddressError.
    """
    if not VISIBLE.fullmatch(text):
        raise AddressError("a URL has no spaces, control characters or letters beyond ASCII")
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise AddressError(f"it cannot be read as a URL: {error}") from None
    if parts.scheme not in PORTS or not text[len(parts.scheme) :].startswith("://"):
        raise AddressError("it must begin with http:// or https://")
    if "@" in parts.netloc:
        raise AddressError("it must not hold a user or password")
    if "?" in text or "#" in text:
        raise AddressError("it must not have a query or a fragment")
    path = parts.path.rstrip("/")
    if path and not with_path:
        raise AddressError(
            f"it must not have a path, such as {path[:100]!r}: only a host and a port"
        )
    if not PATH.fullmatch(path):
        raise AddressError("its path has characters that no URL may have")
    port = _port(parts)
    shown = "" if port == PORTS[parts.scheme] else f":{port}"
    return f"{parts.scheme}://{_host(parts)}{shown}{path}"


def _port(parts: SplitResult) -> int:
    # `parts.port` does not tell a missing port from an empty one.
    before, colon, text = parts.netloc.rpartition("]")[2].rpartition(":")
    if before and "]" in parts.netloc:
        raise AddressError("only a port may follow the bracket of an IPv6 address")
    if not colon:
        return PORTS[parts.scheme]
    if not re.fullmatch(r"[0-9]{1,8}", text) or not 1 <= int(text) <= LAST_PORT:
        raise AddressError(f"its port must be a number from 1 to {LAST_PORT}, not {text[:20]!r}")
    return int(text)


def _host(parts: SplitResult) -> str:
    host = (parts.hostname or "").lower()
    if "[" in parts.netloc:
        return _ipv6(host)
    host = host.removesuffix(".")  # the root of all names, which hardly anybody writes
    if ENDS_IN_NUMBER.fullmatch(host):
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
            raise AddressError(f"{host[:100]!r} is no IPv4 address") from None
    if not HOST_NAME.fullmatch(host):
        raise AddressError(f"{host[:100]!r} is no host name" if host else "it has no host")
    return host


def _ipv6(host: str) -> str:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        raise AddressError(f"{host[:100]!r} is no IPv6 address") from None
    if address.scope_id is not None:
        raise AddressError("an IPv6 address with a zone means something on one machine only")
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"[{address}]"
