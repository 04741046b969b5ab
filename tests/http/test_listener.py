"""Ports that are taken and hosts that are nobody's: said at once, by the flag's name."""

import socket

import pytest

from kodolly.errors import SettingsError
from kodolly.http.listener import bind


def test_a_taken_port_names_its_flag() -> None:
    """Before an engine or anything else is started."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"--port: cannot listen on 127\.0\.0\.1:{port}: "):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_a_host_that_is_not_this_machines_names_its_flag(host: str) -> None:
    """An address of another machine, and a text that is none."""
    with pytest.raises(SettingsError, match=r"^--host: "):
        bind(host, 0)


def test_a_name_is_every_address_it_has() -> None:
    """`localhost` may be 127.0.0.1 and ::1; each gets a socket of its own."""
    sockets = bind("localhost", 0)
    try:
        addresses = {
            info[4] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)
        }
        assert {sock.getsockname()[0] for sock in sockets} == {address[0] for address in addresses}
    finally:
        for sock in sockets:
            sock.close()
