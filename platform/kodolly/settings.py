"""All settings, one class for each process. options.py says where the values come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, TypeVar

from kodolly import exposure
from kodolly.credentials import check_secret, read_keys, read_secret
from kodolly.errors import SettingsError
from kodolly.http.bounds import Bounds
from kodolly.logs import configure
from kodolly.options import Resolution, Section, environment_name, option, resolve
from kodolly.protocol.addresses import AddressError, canonical_url
from kodolly.server_options import tls_cert, tls_key

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

    def bounds(self) -> Bounds:
        """The same, as the server takes it."""
        return Bounds(
            max_connections=self.max_connections,
            head_timeout=self.head_timeout,
            body_timeout=self.body_timeout,
            idle_timeout=self.idle_timeout,
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


@dataclass(frozen=True)
class WorkerSettings(HttpSettings):
    """`kodolly worker`."""

    section: ClassVar[str] = "worker"
    uses_hub: ClassVar[bool] = True

    host: str = option(LOCAL, "address that the worker and its engine listen on")
    # Not 0 (any free port): others must know the port before the worker listens.
    port: int = option(WORKER_PORT, "port of the agent", minimum=1, maximum=65535)
    open: bool = option(False, OPEN)
    advertise: str | None = option(
        None,
        "address at which others reach this worker: a host name, or 'auto' for this machine's IP",
    )
    controller: str = option(
        f"http://{LOCAL}:{CONTROLLER_PORT}",
        "the controller's URL; several with commas between them, the primary first",
    )
    engine: str = option(
        "transformers",
        "server that generates the tokens",
        choices=("vllm", "transformers", "openai"),
    )
    model: str | None = option(None, "model directory (or a hub id the engine can load)")
    model_name: str | None = option(
        None,
        "name under which the model is served (default: from its model card, else the directory's"
        " name); with --engine-url, which of that server's models, with commas between them"
        " (default: all)",
    )
    conv_template: str | None = option(
        None, "conversation template (default: from the model card, else the model's chat template)"
    )
    tokenizer: str | None = option(
        None,
        "directory (or hub id) of the model's tokenizer, if --model is none that can be read here:"
        " its special tokens are guarded, so that a user cannot forge a turn",
    )
    engine_port: int = option(ENGINE_PORT, "port of the engine process", minimum=1, maximum=65535)
    engine_url: str | None = option(
        None, "URL of a running server to attach to (with --engine openai)"
    )
    engine_key: str | None = option(None, "API key of that server", secret=True)
    adapters: tuple[str, ...] = option(
        (), "NAME=DIR: LoRA adapter, served beside the model as NAME (vLLM only); may be repeated"
    )
    engine_python: str | None = option(
        None, "Python interpreter of the environment that vLLM is installed in"
    )
    engine_args: tuple[str, ...] = option(
        (),
        "one more argument for the engine, written --engine-args=--flag; may be repeated. The"
        " variable holds all arguments, split as in a shell",
        shell=True,
    )
    max_model_len: int | None = option(None, "context length in tokens", minimum=16)
    max_num_seqs: int | None = option(None, "most requests in a batch", minimum=1)
    dtype: str = option(
        "auto",
        "data type of weights and activations",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    seed: int | None = option(None, "the engine's seed")
    speed: int = option(1, "this worker's share of requests, relative to other workers", minimum=1)
    heart_beat_interval: float = option(1.0, "seconds between heartbeats", minimum=0.1)
    stall_after: float = option(
        3.0,
        "seconds without progress after which an engine with work gets no more requests",
        minimum=0.1,
    )
    restart_after: float = option(
        30.0, "seconds without progress after which the engine is restarted", minimum=1
    )
    canary_interval: float = option(
        15.0, "seconds between test tokens that an idle engine has to generate (0: none)", minimum=0
    )
    start_timeout: float = option(
        900.0, "seconds from the engine's start to its first token, at most", minimum=1
    )
    drain_timeout: float = option(
        60.0, "seconds that running requests may still take after SIGTERM", minimum=0
    )
    tls_cert: str | None = tls_cert()
    tls_key: str | None = tls_key()

    def controllers(self) -> tuple[str, ...]:
        """The controllers' URLs, the primary's first. Raises SettingsError."""
        return _urls("--controller", self.controller)


@dataclass(frozen=True)
class ApiSettings(HttpSettings):
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
        return _urls("--controller", self.controller)

    def keys(self) -> frozenset[str]:
        """Accepted client keys, from `client_keys` and `client_keys_file`. Raises SettingsError."""
        if self.client_keys:
            check_secret(self.client_keys, "client_keys")
        if self.client_keys_file is None:
            return frozenset(self.client_keys)
        return frozenset(self.client_keys) | set(
            read_keys("--client-keys-file", self.client_keys_file)
        )


@dataclass(frozen=True)
class WebSettings(HttpSettings):
    """`kodolly web`."""

    section: ClassVar[str] = "web"
    uses_token: ClassVar[bool] = False  # the page asks the API alone, with a client's key

    host: str = option(LOCAL, "address to listen on")
    port: int = option(WEB_PORT, "port to listen on", minimum=0, maximum=65535)
    open: bool = option(False, OPEN)
    published_address: str | None = option(None, PUBLISHED)
    api: str = option(f"http://{LOCAL}:{API_PORT}", "the API's URL")
    api_key: str | None = option(None, "client key for the API, if it requires one", secret=True)
    title: str = option("KoDolly", "name shown on the page")
    max_tokens: int = option(
        512, "longest answer in tokens: where the page's slider starts", minimum=1
    )
    temperature: float = option(
        0.7, "temperature: where the page's slider starts", minimum=0, maximum=2
    )
    root_path: str = option("", "path prefix behind a proxy")
    tls_cert: str | None = tls_cert()
    tls_key: str | None = tls_key()
    api_certificate: str | None = option(
        None, "PEM file with the API's certificate, to be trusted whatever host name it holds"
    )


@dataclass(frozen=True)
class UpSettings(HttpSettings):
    """`kodolly up`: controller, workers, API and page under one supervisor."""

    section: ClassVar[str] = "up"

    home: str = option(".kodolly", "directory for models, logs and the state file")
    log_max_bytes: int = option(
        10 * 2**20,
        "bytes at which a process's log goes on in a new file; three old ones are kept",
        minimum=1024,
    )
    model: str | None = option(
        None, "model directory, or a hub id such as org/name (default: the embedded model)"
    )
    conv_template: str | None = option(
        None, "conversation template (default: from the model card, else the model's chat template)"
    )
    engine: str = option(
        "transformers", "server that generates the tokens", choices=("vllm", "transformers")
    )
    adapters: tuple[str, ...] = option(
        (), "NAME=DIR: LoRA adapter, served beside the model as NAME (vLLM only); may be repeated"
    )
    engine_python: str | None = option(
        None, "Python interpreter of the environment that vLLM is installed in"
    )
    engine_args: tuple[str, ...] = option(
        (),
        "one more argument for every worker's engine, written --engine-args=--flag; may be repeated",
        shell=True,
    )
    workers: int = option(1, "number of workers", minimum=1, maximum=64)
    host: str = option(LOCAL, "address that page and API listen on")
    open: bool = option(False, OPEN)
    web_port: int = option(WEB_PORT, "port of the page", minimum=1, maximum=65535)
    api_port: int = option(API_PORT, "port of the API", minimum=1, maximum=65535)
    controller_port: int = option(
        CONTROLLER_PORT, "port of the controller", minimum=1, maximum=65535
    )
    worker_port: int = option(WORKER_PORT, "port of the first worker", minimum=1, maximum=65535)
    web: bool = option(True, "serve the page (--no-web: the API alone)")
    temperature: float | None = option(
        None,
        "temperature: where the page's slider starts (default: the model's own)",
        minimum=0,
        maximum=2,
    )
    tls_cert: str | None = tls_cert()
    tls_key: str | None = tls_key()

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


def load(cls: type[C], argv: Sequence[str], description: str, name: str = "") -> C:
    """The settings of one process. Also sets up logging by them. Raises SettingsError.

    `name`: the command's name where it is not that of the section.
    """
    return load_with_sources(cls, argv, description, name).settings


def load_with_sources(
    cls: type[C], argv: Sequence[str], description: str, name: str = ""
) -> Resolution[C]:
    """Like `load`, with the source of each setting."""
    prog = f"kodolly {name or cls.section}"
    resolved = resolve(cls, argv, prog=prog, description=description, sections=SECTIONS)
    configure(resolved.settings.log_level, resolved.settings.log_format)
    if not cls.uses_token:  # a settings file that all processes share may hold it
        settings = replace(resolved.settings, token=None, token_file=None)
        resolved = replace(resolved, settings=settings)
    return resolved


HUB_SECRETS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
# Secrets that an operator may have in the environment for other programs.
OTHER_SECRETS = HUB_SECRETS | {"OPENAI_API_KEY", "VLLM_API_KEY"}


def foreign_secrets(cls: type[CommonSettings]) -> frozenset[str]:
    """The environment variables with secrets that a process with these settings has no use for."""
    own = {environment_name(cls, f.name) for f in fields(cls)}
    if not cls.uses_token:
        own -= {environment_name(CommonSettings, name) for name in ("token", "token_file")}
    secrets = {
        environment_name(section, f.name)
        for section in SECTIONS
        for f in fields(section)
        if not f.metadata["may_be_empty"]
    }
    others = OTHER_SECRETS - HUB_SECRETS if cls.uses_hub else OTHER_SECRETS
    return frozenset((secrets - own) | others)


def is_foreign_to_engines(variable: str) -> bool:
    """Whether an engine has no use for an environment variable: ours, and other programs' secrets."""
    return variable.startswith("KODOLLY_") or variable in OTHER_SECRETS - HUB_SECRETS


def require_token(settings: ControllerSettings | WorkerSettings, host: str) -> str | None:
    """The shared secret. Raises SettingsError if there is none but other machines can reach `host`."""
    token = settings.secret()
    if token is None:
        variable = environment_name(type(settings), "open")
        exposure.require_token(host, is_open=settings.open, variable=variable)
    return token


def require_keys(settings: ApiSettings) -> None:
    """Raises SettingsError for an API that others reach and that has neither a key nor `--open`."""
    if not settings.keys():
        exposure.require_client_keys(
            settings.host,
            settings.published_address,
            is_open=settings.open,
            variable=environment_name(ApiSettings, "open"),
        )


def _urls(flag: str, text: str) -> tuple[str, ...]:
    urls = tuple(_checked_url(flag, part.strip()) for part in text.split(",") if part.strip())
    if not urls or len(set(urls)) < len(urls):
        raise SettingsError(
            f"{flag}: give one URL, or several different ones with commas between them, not {text!r}"
        )
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
