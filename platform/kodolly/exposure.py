"""Whether other machines reach a process. One that asks for no key must then be opened by name."""

from __future__ import annotations

import ipaddress
import socket

from kodolly.errors import SettingsError


def is_loopback(host: str) -> bool:
    """Whether all addresses of `host` are loopback, so that only this machine reaches them."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(addresses) and all(ipaddress.ip_address(str(a)).is_loopback for a in addresses)


def require_token(host: str, *, is_open: bool, variable: str) -> None:
    """For a controller or worker without a token. Raises SettingsError as `_refuse` does."""
    lack = "a shared secret is needed"
    cure = "set KODOLLY_TOKEN (or --token-file) to the same value everywhere"
    _refuse(host, None, lack, cure, is_open=is_open, variable=variable)


def require_client_keys(host: str, published: str | None, *, is_open: bool, variable: str) -> None:
    """For an API without client keys. Raises SettingsError as `_refuse` does."""
    lack = "the API asks for no key"
    cure = "set KODOLLY_API_CLIENT_KEYS (or --client-keys-file)"
    _refuse(host, published, lack, cure, is_open=is_open, variable=variable)


def require_login(host: str, published: str | None, *, is_open: bool, variable: str) -> None:
    """For the page, which has no login of its own. Raises SettingsError as `_refuse` does."""
    lack = "the page asks nobody who they are"
    cure = "leave it on this machine behind a proxy with a login"
    _refuse(host, published, lack, cure, is_open=is_open, variable=variable)


def _refuse(
    host: str, published: str | None, lack: str, cure: str, *, is_open: bool, variable: str
) -> None:
    """Raises SettingsError if others reach `host`, unless `is_open`: the operator says they may.

    `published`: the address at which Docker publishes the port. It counts instead of `host`, which
    is every address inside a container. `variable`: the one that opens this process.
    """
    if is_open or is_loopback(published or host):
        return
    address = f"the published address {published}" if published else f"--host {host}"
    raise SettingsError(
        f"{address} is reachable by others, and {lack}: {cure}, or let everybody in with --open"
        f" ({variable}=true)"
    )
