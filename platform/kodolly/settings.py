"""All settings, one class for each process. options.py says where the values come from."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from kodolly.errors import SettingsError
from kodolly.logs import configure
from kodolly.options import Resolution, Section, option, read_secret, require_filled, resolve
from kodolly.protocol.addresses import AddressError, canonical_url

LOCAL = "127.0.0.1"
CONTROLLER_PORT, WORKER_PORT, ENGINE_PORT, API_PORT, WEB_PORT = 21001, 21002, 22002, 8000, 7860
EMBEDDED_MODEL = "kodolly-ko-8m"  # what `kodolly fetch` copies


@dataclass(frozen=True)
class CommonSettings(Section):
    """Options of every process."""

    token: str | None = option(None, "shared secret of controller, workers and API", secret=True)
    token_file: str | None = option(
        None, "file that holds the token (a compose secret)", secret_file=True
    )
    log_level: str = option("info", "how much to log", choices=("debug", "info", "warning"))
    log_format: str = option("text", "one line as text or JSON", choices=("text", "json"))

    def secret(self) -> str | None:
        """The token, from `token` or `token_file`. Raises SettingsError if it is empty or unreadable."""
        if self.token is not None:
            require_filled(self.token, "token")
            return self.token
        return None if self.token_file is None else read_secret("token_file", self.token_file)


@dataclass(frozen=True)
class ControllerSettings(CommonSettings):
    """`kodolly controller`."""

    section: ClassVar[str] = "controller"

    host: str = option(LOCAL, "address to listen on")
    port: int = option(CONTROLLER_PORT, "port to listen on", minimum=0, maximum=65535)
    dispatch_method: str = option(
        "shortest_queue",
        "how /get_worker_address chooses",
        choices=("shortest_queue", "lottery"),
    )
    expiration: float = option(
        90.0, "seconds without a heartbeat after which a FastChat worker is lost", minimum=1
    )
    missed_beats: float = option(
        3.0, "heartbeat intervals a KoDolly worker may miss before it is lost", minimum=1.5
    )
    drain_timeout: float = option(30.0, "seconds relayed answers get at SIGTERM", minimum=0)


@dataclass(frozen=True)
class WorkerSettings(CommonSettings):
    """`kodolly worker`."""

    section: ClassVar[str] = "worker"

    host: str = option(LOCAL, "address to listen on, the engine too")
    # Not 0 (any free port): others must know the port before the worker listens.
    port: int = option(WORKER_PORT, "port of the agent", minimum=1, maximum=65535)
    advertise: str | None = option(
        None,
        "address others reach this worker by: a host name, or 'auto' for this machine's own IP",
    )
    controller: str = option(
        f"http://{LOCAL}:{CONTROLLER_PORT}",
        "the controller's URL; of several, the primary's first, with commas between them",
    )
    engine: str = option(
        "transformers", "what makes the tokens", choices=("vllm", "transformers", "openai")
    )
    model: str | None = option(None, "model directory (or a hub id the engine can load)")
    model_name: str | None = option(
        None,
        "name the model is served by (default: its card's, else the directory's); with"
        " --engine-url, which of that server's models, with commas between them (default: all)",
    )
    conv_template: str | None = option(
        None, "conversation template (default: the model card's, else the model's own)"
    )
    tokenizer: str | None = option(
        None,
        "directory (or hub id) of the model's tokenizer, if --model is none that can be read here:"
        " its special tokens are guarded, so that a user cannot forge a turn",
    )
    engine_port: int = option(ENGINE_PORT, "port of the engine process", minimum=1, maximum=65535)
    engine_url: str | None = option(None, "server to attach to (engine openai)")
    engine_key: str | None = option(None, "API key of that server", secret=True)
    adapters: tuple[str, ...] = option(
        (), "NAME=DIR: LoRA adapter served beside the model as NAME (vLLM); may be repeated"
    )
    engine_python: str | None = option(None, "interpreter of the engine's own environment (vLLM)")
    engine_args: tuple[str, ...] = option(
        (),
        "further argument for the engine, written --engine-args=--flag; may be repeated. The"
        " variable holds all of them, split as a shell does it",
        shell=True,
    )
    max_model_len: int | None = option(None, "context length in tokens", minimum=16)
    max_num_seqs: int | None = option(None, "requests decoded at once", minimum=1)
    dtype: str = option("auto", "number type", choices=("auto", "float32", "bfloat16", "float16"))
    seed: int | None = option(None, "the engine's seed")
    speed: int = option(1, "weight of this worker against others", minimum=1)
    heart_beat_interval: float = option(1.0, "seconds between heartbeats", minimum=0.1)
    stall_after: float = option(
        3.0,
        "seconds an engine with work may make no step before it leaves rotation",
        minimum=0.1,
    )
    restart_after: float = option(
        30.0, "seconds after which an engine that stays stuck is started anew", minimum=1
    )
    canary_interval: float = option(
        15.0, "seconds after which an idle engine must make a token (0: it need not)", minimum=0
    )
    start_timeout: float = option(900.0, "seconds the engine has for its first token", minimum=1)
    drain_timeout: float = option(60.0, "seconds running requests get at SIGTERM", minimum=0)

    def controllers(self) -> tuple[str, ...]:
        """The controllers' URLs, the primary's first. Raises SettingsError."""
        return _urls("--controller", self.controller)


@dataclass(frozen=True)
class ApiSettings(CommonSettings):
    """`kodolly api`."""

    section: ClassVar[str] = "api"

    host: str = option(LOCAL, "address to listen on")
    port: int = option(API_PORT, "port to listen on", minimum=0, maximum=65535)
    controller: str = option(
        f"http://{LOCAL}:{CONTROLLER_PORT}",
        "the controller's URL; of several, the primary's first, with commas between them",
    )
    client_keys: tuple[str, ...] = option((), "accepted client key; none: everybody", secret=True)
    client_keys_file: str | None = option(
        None, "file with one accepted client key a line", secret_file=True
    )
    max_body: int = option(4 * 2**20, "largest request body in bytes", minimum=1024)
    connect_timeout: float = option(3.0, "seconds to reach a worker", minimum=0.1)
    read_timeout: float = option(
        300.0, "seconds an engine may be silent within a stream", minimum=1
    )
    answer_timeout: float = option(
        1800.0, "seconds an engine has for a whole answer that is not streamed", minimum=1
    )
    client_timeout: float = option(
        120.0, "seconds a client may be so slow that its stream has to wait", minimum=1
    )
    processes: int = option(1, "processes that share the port", minimum=1, maximum=64)
    drain_timeout: float = option(60.0, "seconds open answers get at SIGTERM", minimum=0)
    drain_delay: float = option(
        0.0, "seconds of taking requests, but not being ready, before that", minimum=0
    )
    routing: str = option(
        "affinity",
        "how a worker is chosen",
        choices=("affinity", "shortest_queue", "lottery", "round_robin"),
    )
    worker_limit: int = option(
        256, "requests of a model that may run at once, for each of its workers", minimum=1
    )
    queue_size: int = option(256, "requests of a model that may wait beyond those", minimum=0)
    queue_timeout: float = option(60.0, "seconds a request may wait for its turn", minimum=0.1)

    def controllers(self) -> tuple[str, ...]:
        """The controllers' URLs, the primary's first. Raises SettingsError."""
        return _urls("--controller", self.controller)

    def keys(self) -> frozenset[str]:
        """Accepted client keys, from `client_keys` and `client_keys_file`."""
        if self.client_keys_file is None:
            return frozenset(self.client_keys)
        lines = read_secret("client_keys_file", self.client_keys_file).splitlines()
        return frozenset(self.client_keys) | {line.strip() for line in lines if line.strip()}


@dataclass(frozen=True)
class WebSettings(CommonSettings):
    """`kodolly web`."""

    section: ClassVar[str] = "web"

    host: str = option(LOCAL, "address to listen on")
    port: int = option(WEB_PORT, "port to listen on", minimum=0, maximum=65535)
    api: str = option(f"http://{LOCAL}:{API_PORT}", "the API's URL")
    api_key: str | None = option(None, "client key for the API, if it asks for one", secret=True)
    title: str = option("KoDolly", "name shown on the page")
    max_tokens: int = option(512, "longest answer offered by default", minimum=1)
    temperature: float = option(0.7, "temperature offered by default", minimum=0, maximum=2)
    root_path: str = option("", "path prefix behind a proxy")


@dataclass(frozen=True)
class UpSettings(CommonSettings):
    """`kodolly up`: controller, workers, API and page under one supervisor."""

    section: ClassVar[str] = "up"

    home: str = option(".kodolly", "where models, logs and the state file live")
    model: str | None = option(
        None, "model directory, or a hub id such as org/name (default: the embedded model)"
    )
    conv_template: str | None = option(
        None, "conversation template (default: the model card's, else the model's own)"
    )
    engine: str = option("transformers", "what makes the tokens", choices=("vllm", "transformers"))
    adapters: tuple[str, ...] = option(
        (), "NAME=DIR: LoRA adapter served beside the model as NAME (vLLM); may be repeated"
    )
    engine_python: str | None = option(None, "interpreter of the engine's own environment (vLLM)")
    workers: int = option(1, "how many workers of the model", minimum=1, maximum=64)
    host: str = option(LOCAL, "address web and API listen on")
    web_port: int = option(WEB_PORT, "port of the page", minimum=1, maximum=65535)
    api_port: int = option(API_PORT, "port of the API", minimum=1, maximum=65535)
    controller_port: int = option(CONTROLLER_PORT, "controller's port", minimum=1, maximum=65535)
    worker_port: int = option(WORKER_PORT, "first worker's port", minimum=1, maximum=65535)
    web: bool = option(True, "serve the page (--no-web: the API alone)")
    temperature: float | None = option(
        None, "temperature the page offers (default: the model's own)", minimum=0, maximum=2
    )

    def model_directory(self) -> Path:
        """The directory of the served model. The embedded one is copied there if it is missing."""
        return Path(self.model) if self.model else Path(self.home) / "models" / EMBEDDED_MODEL


SECTIONS: tuple[type[CommonSettings], ...] = (
    ControllerSettings,
    WorkerSettings,
    ApiSettings,
    WebSettings,
    UpSettings,
)


C = TypeVar("C", bound=CommonSettings)


def load(cls: type[C], argv: Sequence[str], description: str) -> C:
    """The settings of one process. Also sets up logging by them. Raises SettingsError."""
    return load_with_sources(cls, argv, description).settings


def load_with_sources(cls: type[C], argv: Sequence[str], description: str) -> Resolution[C]:
    """Like `load`, with the source of each setting."""
    prog = f"kodolly {cls.section}"
    resolved = resolve(cls, argv, prog=prog, description=description, sections=SECTIONS)
    configure(resolved.settings.log_level, resolved.settings.log_format)
    return resolved


def is_loopback(host: str) -> bool:
    """Whether all addresses of `host` are loopback, so that only this machine reaches them."""
    try:
        addresses = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(addresses) and all(ipaddress.ip_address(str(a)).is_loopback for a in addresses)


def require_token(settings: CommonSettings, host: str) -> str | None:
    """The shared secret. Raises SettingsError if there is none but other machines can reach `host`."""
    token = settings.secret()
    if token is None and not is_loopback(host):
        raise SettingsError(
            f"--host {host} is reachable by others, so a shared secret is needed: "
            "set KODOLLY_TOKEN (or --token-file) to the same value everywhere"
        )
    return token


def _urls(flag: str, text: str) -> tuple[str, ...]:
    urls = tuple(_checked_url(flag, part.strip()) for part in text.split(",") if part.strip())
    if not urls or len(set(urls)) < len(urls):
        raise SettingsError(f"{flag}: one URL or several different ones, not {text!r}")
    return urls


def _checked_url(flag: str, url: str) -> str:
    """A controller's URL, each address in one spelling. It may have a path, and a user and password."""
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
