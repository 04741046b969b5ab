"""Tokens that belong to a group of workers: each may register only its own models and addresses.

One stolen group token is not the fleet's: it cannot read the table with the engines' keys, and cannot
take over the address or the models of another group. The file `--worker-tokens-file` has one table a group:

    [korean]
    token_file = "/run/secrets/korean"          # or: token = "..."
    models = ["dolly-ko", "dolly-ko-*"]         # names of models and adapters; * stands for any text
    addresses = ["10.0.1.0/24", "worker-a", "*.korean.internal", "http://10.0.2.7:21002"]
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kodolly.credentials import check_secret, read_secret
from kodolly.errors import Forbidden, SettingsError
from kodolly.http.token_guard import presented_token, same_secret
from kodolly.protocol.wire import Extension
from kodolly.toml_file import TomlFile, read_toml

KEYS = ("token", "token_file", "models", "addresses")


@dataclass(frozen=True)
class Group:
    """Workers with a token of their own. `models`, `addresses`: patterns of what they may register."""

    name: str
    token: str = field(repr=False)
    models: tuple[str, ...]
    addresses: tuple[str, ...]

    def check_address(self, url: str) -> None:
        """Raises Forbidden unless the address of a worker or engine belongs to this group."""
        if not any(_matches(pattern, url) for pattern in self.addresses):
            raise Forbidden(
                f"the token of group {self.name!r} may not register the address {url}: the"
                " controller's --worker-tokens-file lists its addresses"
            )

    def check_models(self, names: Iterable[str]) -> None:
        """Raises Forbidden for a model that the group may not serve."""
        for name in names:
            if not any(fnmatchcase(name, pattern) for pattern in self.models):
                raise Forbidden(
                    f"the token of group {self.name!r} may not register the model {name!r}: the"
                    " controller's --worker-tokens-file lists its models"
                )

    def check_extension(self, extension: Extension | None) -> None:
        """Raises Forbidden for an engine elsewhere, or none: the API would send such a worker its token."""
        if extension is None or not extension.engine_url:
            raise Forbidden(
                f"the token of group {self.name!r} is for KoDolly's own workers, which name their"
                " engine; a FastChat worker needs the controller's own token"
            )
        self.check_address(extension.engine_url)
        self.check_models(extension.aliases)

    def check_owner(self, name: str, owner: str | None) -> None:
        """Raises Forbidden for a worker that another group, or the controller's own token, registered."""
        if owner != self.name:
            raise Forbidden(
                f"{name} was not registered by the token of group {self.name!r}, which may not"
                " change it"
            )


class Groups:
    """All groups of one controller."""

    # What a group's token opens. Whatever tells of other workers is not among it.
    paths = frozenset({"/register_worker", "/receive_heart_beat", "/deregister_worker"})

    def __init__(self, groups: Iterable[Group] = ()) -> None:
        self._groups = {group.name: group for group in groups}

    def of(self, headers: Mapping[bytes, bytes]) -> Group | None:
        """The group whose token a request presents; None for any other."""
        if not self._groups:
            return None
        given = presented_token(headers.get(b"authorization", b"").decode("latin-1"))
        matches = [g for g in self._groups.values() if same_secret(given, g.token)]
        return matches[0] if matches else None

    def token_of(self, name: str | None) -> str | None:
        """The token of the group with this name; None if there is none."""
        group = self._groups.get(name or "")
        return None if group is None else group.token


def read_groups(path: str | None, token: str | None) -> Groups:
    """The groups in a file, none without one. `token`: the controller's own.

    Raises SettingsError, which names the file and the line.
    """
    if path is None:
        return Groups()
    if token is None:
        raise SettingsError(
            "--worker-tokens-file needs --token or --token-file: without one everybody is trusted"
        )
    file = read_toml(Path(path), "--worker-tokens-file")
    tokens = {token: "the controller's own"}
    groups = []
    for name, table in file.table.items():
        group = _group(file, name, table)
        if (other := tokens.setdefault(group.token, f"that of [{name}]")) != f"that of [{name}]":
            raise SettingsError(
                f"{path}:{file.line_of(name)}: [{name}] has the same token as {other}"
            )
        groups.append(group)
    if not groups:
        raise SettingsError(f"{path}: no group of workers in it; write one table for each")
    return Groups(groups)


def _group(file: TomlFile, name: str, table: Any) -> Group:
    if not isinstance(table, dict):
        raise SettingsError(f"{file.path}: {name} stands outside of a [group]")

    def fault(key: str | None, message: str) -> SettingsError:
        return SettingsError(f"{file.path}:{file.line_of(name, key)}: [{name}] {message}")

    if unknown := [key for key in table if key not in KEYS]:
        raise fault(unknown[0], f"has an unknown key {unknown[0]!r}; known: {', '.join(KEYS)}")
    if ("token" in table) == ("token_file" in table):
        raise fault(None, "needs either token or token_file")
    key = "token" if "token" in table else "token_file"
    if not isinstance(table[key], str):
        raise fault(key, f"{key} must be a text")
    try:
        if key == "token":
            check_secret(table[key], "token")
        token = table[key] if key == "token" else read_secret("token_file", table[key])
    except SettingsError as error:
        raise fault(key, str(error)) from error
    models, addresses = (_patterns(table, each, fault) for each in ("models", "addresses"))
    for pattern in addresses:
        if "/" in pattern and "://" not in pattern and _network(pattern) is None:
            raise fault("addresses", f"addresses: {pattern!r} is no network such as 10.0.1.0/24")
    return Group(name, token, models, addresses)


def _patterns(
    table: Mapping[str, Any], key: str, fault: Callable[[str | None, str], SettingsError]
) -> tuple[str, ...]:
    value = table.get(key)
    if value is None:
        raise fault(None, f'needs {key}; ["*"] allows all')
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v for v in value):
        raise fault(key, f'{key} must be a list of texts, such as ["a", "b-*"]')
    return tuple(value)


def _network(pattern: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(pattern)
    except ValueError:
        return None


def _matches(pattern: str, url: str) -> bool:
    """Whether a URL's host, or the URL itself where the pattern is one, belongs to a pattern."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port
        if "://" in pattern:
            own = urlsplit(pattern)
            return (own.scheme, own.hostname, own.port) == (parts.scheme, host, port)
    except ValueError:
        return False
    if (network := _network(pattern)) is None:
        return bool(host) and fnmatchcase(host, pattern.lower())
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False
