"""The settings of `kodolly api`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kodolly.credentials import check_secret, read_keys
from kodolly.options import option
from kodolly.settings.common import (
    API_PORT,
    CONTROLLER_PORT,
    LOCAL,
    OPEN,
    PUBLISHED,
    HttpSettings,
    controller_urls,
    tls_cert,
    tls_key,
)
from kodolly.settings.store import StoreSettings


@dataclass(frozen=True)
class ApiSettings(HttpSettings, StoreSettings):
    """`kodolly api`."""

    section: ClassVar[str] = "api"

    host: str = option(LOCAL, "address to listen on")
    port: int = option(API_PORT, "port to listen on", minimum=0, maximum=65535)
    open: bool = option(False, OPEN)
    published_address: str | None = option(None, PUBLISHED)
    controller: str = option(
        f"http://{LOCAL}:{CONTROLLER_PORT}",
        "the controller's URL; several with commas between them, the primary first",
    )
    client_keys: tuple[str, ...] = option(
        (),
        "accepted client keys, with commas between them (none: no key is asked for)",
        secret=True,
    )
    client_keys_file: str | None = option(
        None,
        "file with one accepted client key a line; lines that begin with # are comments",
        secret_file=True,
    )
    allowed_origins: tuple[str, ...] = option(
        (),
        "origin of web pages that may call the API from a browser (CORS), such as"
        " https://app.example.com; *: any",
    )
    max_body: int = option(4 * 2**20, "largest request body in bytes", minimum=1024)
    max_file: int = option(
        32 * 2**20, "largest uploaded file in bytes: the requests of a batch", minimum=1024
    )
    connect_timeout: float = option(3.0, "seconds to reach a worker", minimum=0.1)
    read_timeout: float = option(
        300.0, "seconds an engine may be silent within a stream", minimum=1
    )
    answer_timeout: float = option(
        1800.0, "seconds an engine may take for an answer that is not streamed", minimum=1
    )
    client_timeout: float = option(
        120.0,
        "seconds a stream may wait for a client that does not read; then its connection is closed",
        minimum=1,
    )
    ping_interval: float = option(
        15.0,
        "seconds after which a stream that is silent is sent a comment, which clients skip (0: never)",
        minimum=0,
    )
    processes: int = option(1, "processes that share the port", minimum=1, maximum=64)
    drain_timeout: float = option(
        60.0, "seconds that running requests may still take after SIGTERM", minimum=0
    )
    drain_delay: float = option(
        0.0,
        "seconds after SIGTERM in which /ready says 503 and requests are still accepted",
        minimum=0,
    )
    routing: str = option(
        "affinity",
        "how a worker is chosen",
        choices=("affinity", "shortest_queue", "lottery", "round_robin"),
    )
    worker_limit: int = option(
        256, "most requests of a model that run at once, for each of its workers", minimum=1
    )
    queue_size: int = option(256, "most requests of a model that wait for their turn", minimum=0)
    queue_timeout: float = option(60.0, "seconds a request may wait for its turn", minimum=0.1)
    tls_cert: str | None = tls_cert()
    tls_key: str | None = tls_key()

    def controllers(self) -> tuple[str, ...]:
        """The controllers' URLs, the primary's first. Raises SettingsError."""
        return controller_urls(self.controller)

    def keys(self) -> frozenset[str]:
        """Accepted client keys, from `client_keys` and `client_keys_file`. Raises SettingsError."""
        if self.client_keys:
            check_secret(self.client_keys, "client_keys")
        if self.client_keys_file is None:
            return frozenset(self.client_keys)
        return frozenset(self.client_keys) | set(
            read_keys("--client-keys-file", self.client_keys_file)
        )
