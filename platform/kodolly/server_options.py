"""Options that every process with a server has, each under its own section of the settings."""

from __future__ import annotations

from typing import Any

from kodolly.options import option


def tls_cert() -> Any:
    """The option `--tls-cert`."""
    return option(None, "PEM file with this server's certificate chain; with it, it speaks https")


def tls_key() -> Any:
    """The option `--tls-key`."""
    return option(None, "PEM file with that certificate's private key, not encrypted")
