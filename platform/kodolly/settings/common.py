"""Options that several processes have, and what their values are checked by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from kodolly.credentials import check_secret, read_secret
from kodolly.errors import SettingsError
from kodolly.http.bounds import Bounds
from kodolly.options import Section, option
from kodolly.protocol.addresses import AddressError, canonical_url

LOCAL = "127.0.0.1"
CONTROLLER_PORT, WORKER_PORT, ENGINE_PORT, API_PORT, WEB_PORT = 21001, 21002, 22002, 8000, 7860
EMBEDDED_MODEL = "kodolly-ko-8m"  # what `kodolly fetch` copies
# Help texts of options that several processes have, each under a variable of its own.
OPEN = "let other machines in though no key is asked for"
PUBLISHED = "in a container: the address at which its port is published (default: --host)"


@dataclass(frozen=True)
class CommonSettings(Section):
    """Options of every process."""

    uses_token: ClassVar[bool] = True
    uses_hub: ClassVar[bool] = False  # takes models from the Hugging Face hub

    token: str | None = option(None, "shared secret of controller, workers and API", secret=True)
    token_file: str | None = option(
        None, "file that holds the token, such as a compose secret", secret_file=True
    )
    allowed_hosts: tuple[str, ...] = option(
        (),
        "host name by which others reach this process, beside IP addresses, localhost and this"
        " machine's own name; *.example.com: all below it; *: any",
    )
    log_level: str = option("info", "how much to log", choices=("debug", "info", "warning"))
    log_format: str = option("text", "form of each log line", choices=("text", "json"))
    tls_ca: str | None = option(
        None, "PEM file of authorities to trust for https URLs, beside the machine's own"
    )

    def secret(self) -> str | None:
        """The token, from `token` or `token_file`. Raises SettingsError if it cannot be used or read."""
        if self.token is not None:
            check_secret(self.token, "token")
            return self.token
        return None if self.token_file is None else read_secret("--token-file", self.token_file)


@dataclass(frozen=True)
class HttpSettings(CommonSettings):
    """Options of every process with an HTTP server: what strangers may take of it."""

    max_connections: int = option(
        10_000, "connections that a process has at most; more are answered with 503", minimum=1
    )
    head_timeout: float = option(20.0, "seconds a client has for a request's headers", minimum=0.1)
    body_timeout: float = option(120.0, "seconds a client has for a request's body", minimum=0.1)
    idle_timeout: float = option(
        75.0, "seconds after which a connection without a request is closed", minimum=0.1
    )
    access_log: bool = option(True, "log a line for each request")
    metrics_token: str | None = option(
        None,
        "secret that opens /metrics and nothing else; the token opens it too, where there is one"
        " (neither: this machine alone)",
        secret=True,
    )
    metrics_token_file: str | None = option(
        None, "file that holds the metrics token", secret_file=True
    )

    def metrics_secrets(self) -> tuple[str, ...]:
        """What opens /metrics. Raises SettingsError for a secret that cannot be used or read."""
        secrets = [self.secret()]
        if self.metrics_token is not None:
            check_secret(self.metrics_token, "metrics_token")
            secrets.append(self.metrics_token)
        elif self.metrics_token_file is not None:
            secrets.append(read_secret("--metrics-token-file", self.metrics_token_file))
        return tuple(secret for secret in secrets if secret is not None)

    def bounds(self) -> Bounds:
        """The same, as the server takes it."""
        return Bounds(
            max_connections=self.max_connections,
            head_timeout=self.head_timeout,
            body_timeout=self.body_timeout,
            idle_timeout=self.idle_timeout,
        )


def tls_cert() -> Any:
    """The option `--tls-cert`."""
    return option(None, "PEM file with this server's certificate chain; with it, it speaks https")


def tls_key() -> Any:
    """The option `--tls-key`."""
    return option(None, "PEM file with that certificate's private key, not encrypted")


def tool_parser() -> Any:
    """The option `--tool-parser`."""
    return option(
        None,
        "vLLM's parser for tool calls, such as hermes; none: no tools of the model's own choice"
        " (default: from the model card, else by the model's family)",
    )


def reasoning_parser() -> Any:
    """The option `--reasoning-parser`."""
    return option(
        None,
        "vLLM's parser for reasoning, such as qwen3; none: reasoning stays in the answer's text"
        " (default: from the model card, else by the model's family)",
    )


def runner() -> Any:
    """The option `--runner`."""
    return option(
        "auto",
        "what the model makes: text (generate) or embeddings (pooling); auto: embeddings if its"
        " directory has a modules.json",
        choices=("auto", "generate", "pooling"),
    )


def controller_urls(text: str) -> tuple[str, ...]:
    """The controllers' URLs in `--controller`, the primary's first. Raises SettingsError."""
    flag = "--controller"
    urls = tuple(checked_url(flag, part.strip()) for part in text.split(",") if part.strip())
    if not urls or len(set(urls)) < len(urls):
        raise SettingsError(
            f"{flag}: give one URL, or several different ones with commas between them, not {text!r}"
        )
    return urls


def checked_url(flag: str, url: str) -> str:
    """A base URL in the one spelling of its address. It may have a path, and a user and password.

    Raises SettingsError, which names `flag`.
    """
    head, at, rest = url.partition("://")
    user, at_sign, host = rest.rpartition("@")
    try:
        plain = canonical_url(f"{head}{at}{host}", with_path=True)
    except AddressError as error:
        shown = url if not at_sign else f"{head}://...@{host}"
        raise SettingsError(
            f"{flag}: {shown!r} is not of the form http://host:port: {error}"
        ) from None
    return plain.replace("://", f"://{user}@", 1) if at_sign else plain
