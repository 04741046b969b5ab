"""Which host names a process answers to: the defence against DNS rebinding.

A web page of a stranger's can have its own name point to 127.0.0.1. To the browser a server of ours is then part of
that page's site, so the page may read and do everything. But the request names the stranger's host: it is refused.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable

from kodolly.errors import BadRequest, HostNotAllowed, SettingsError

# Names by which containers reach the machine they run on. They lie below .internal, which nobody can own.
CONTAINER_NAMES = ("host.docker.internal", "host.containers.internal")
CACHE_SIZE = (
    256  # accepted Host headers; any IP address with any port is one, so there is no end of them
)
SHOWN = 100  # characters of a refused name that the message repeats
EVERY_ADDRESS = ("0.0.0.0", "::")  # to listen on; the name of no host


class AllowedHosts:
    """The allow-list: IP addresses, localhost, names of this machine, and what the operator added.

    An IP address cannot be rebound, since no name server is asked for it.
    """

    def __init__(self, names: Iterable[str] = (), *own: str | None) -> None:
        """`names`: from `--allowed-hosts`; `*.example.com` is every name below it, `*` any name.

        `own`: hosts that this process listens on or is known by. Raises SettingsError for a name
        that no request could have.
        """
        given = {_normal_name(name) for name in names}
        given |= {host.lower() for host in own if host and host not in EVERY_ADDRESS}
        self._any = "*" in given
        wildcards = (name[1:] for name in given if name.startswith("*."))
        self._suffixes = (".localhost", *wildcards)
        self._names = given | {"localhost", socket.gethostname().lower(), *CONTAINER_NAMES}
        self._cache: set[bytes] = set()

    def check(self, host: bytes) -> None:
        """Raises HostNotAllowed or BadRequest for a Host header that is not on the list.

        The port in it does not matter: a page whose name is rebound comes by the right one.
        """
        if host in self._cache:
            return
        name = host_name(host)
        listed = name in self._names or name.endswith(self._suffixes)
        if not (listed or self._any or is_address(name)):
            shown = ascii(name[:SHOWN])[1:-1]
            raise HostNotAllowed(
                f"This server does not go by the name {shown}. If it should, start it with"
                f" --allowed-hosts {shown} (environment KODOLLY_ALLOWED_HOSTS). By its IP address it"
                " can always be reached."
            )
        if len(self._cache) < CACHE_SIZE:
            self._cache.add(host)


def host_name(host: bytes) -> str:
    """The name or address in a Host header: without port, brackets, final dot, in lower case.

    Raises BadRequest if there is none in it.
    """
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        name, bracket, rest = text[1:].partition("]")
        is_right = bracket == "]" and ":" in name and rest[:1] in ("", ":")
        port = rest[1:]
    else:
        name, _, port = text.partition(":")
        is_right = True
    name = name.removesuffix(".")
    if not is_right or not name or (port and not (port.isascii() and port.isdigit())):
        raise BadRequest("The Host header is not of the form NAME:PORT.")
    return name


def is_address(name: str) -> bool:
    """Whether it is an IP address of either family."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _normal_name(name: str) -> str:
    """A name of the option as a browser would write it in a Host header."""
    text = name.strip().lower().removesuffix(".")
    if is_address(text):
        return text
    if not text or any(sign in text for sign in "/:@[] "):
        raise SettingsError(
            f"allowed_hosts: {name!r} is no host name: write it without scheme, port and path"
        )
    if "*" in text.removeprefix("*.") and text != "*":
        raise SettingsError(f"allowed_hosts: {name!r}: a * stands alone, or as in *.example.com")
    try:
        return text if text.isascii() else text.encode("idna").decode()
    except UnicodeError as error:
        raise SettingsError(f"allowed_hosts: {name!r} is no host name: {error}") from error
