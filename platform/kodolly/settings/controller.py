"""The settings of `kodolly controller`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kodolly.options import option
from kodolly.settings.common import (
    CONTROLLER_PORT,
    LOCAL,
    OPEN,
    HttpSettings,
    tls_cert,
    tls_key,
)


@dataclass(frozen=True)
class ControllerSettings(HttpSettings):
    """`kodolly controller`."""

    section: ClassVar[str] = "controller"

    host: str = option(LOCAL, "address to listen on")
    port: int = option(CONTROLLER_PORT, "port to listen on", minimum=0, maximum=65535)
    open: bool = option(False, OPEN)
    dispatch_method: str = option(
        "shortest_queue",
        "how /get_worker_address chooses a worker",
        choices=("shortest_queue", "lottery"),
    )
    expiration: float = option(
        90.0, "seconds without a heartbeat after which a FastChat worker is lost", minimum=1
    )
    missed_beats: float = option(
        3.0, "heartbeat intervals a KoDolly worker may miss before it is lost", minimum=1.5
    )
    drain_timeout: float = option(
        30.0, "seconds that relayed answers may still run after SIGTERM", minimum=0
    )
    worker_tokens_file: str | None = option(
        None,
        "TOML file of further tokens, each with the models and addresses it may register",
        secret_file=True,
    )
    tls_cert: str | None = tls_cert()
    tls_key: str | None = tls_key()
