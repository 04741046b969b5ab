"""Sockets to listen on, bound before anything slow is started."""

from __future__ import annotations

import contextlib
import socket
from errno import EADDRNOTAVAIL
from typing import Any

from kodolly.errors import SettingsError
from kodolly.protocol.addresses import host_in_url


def bind(host: str, port: int) -> list[socket.socket]:
    """A socket for every address of `host`, bound but not listening yet.

    Raises SettingsError, which names the flag: for a host that is none of this machine's, and for a
    port that is taken.
    """
    with contextlib.ExitStack() as opened:
        sockets = []
        for family, address in _addresses(host, port):
            sock = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # :: shall not take the IPv4 addresses too
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind(address)
            except OSError as error:
                where = f"{host_in_url(host)}:{port}"
                flag = "--host" if error.errno == EADDRNOTAVAIL else "--port"
                raise SettingsError(
                    f"{flag}: cannot listen on {where}: {error.strerror}"
                ) from error
            sockets.append(sock)
        opened.pop_all()
    return sockets


def _addresses(host: str, port: int) -> list[tuple[int, Any]]:
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise SettingsError(f"--host: {host!r} is no address: {error.strerror}") from error
    return list(dict.fromkeys((family, address) for family, _, _, _, address in infos))
