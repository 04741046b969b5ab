"""What `kodolly up` starts, and which addresses it takes."""

import socket
from pathlib import Path

import pytest
from support.processes import free_port

from kodolly.errors import SettingsError
from kodolly.settings import OTHER_SECRETS, ApiSettings, UpSettings, WebSettings, load
from kodolly.supervisor import plan
from kodolly.supervisor.app import check_ports

SECRETS = OTHER_SECRETS | {
    "KODOLLY_TOKEN",
    "KODOLLY_TOKEN_FILE",
    "KODOLLY_CONTROLLER_WORKER_TOKENS_FILE",
    "KODOLLY_WORKER_ENGINE_KEY",
    "KODOLLY_API_CLIENT_KEYS",
    "KODOLLY_API_CLIENT_KEYS_FILE",
    "KODOLLY_API_STORE",  # its URL may hold a password
    "KODOLLY_WEB_API_KEY",
}


def test_children_get_the_common_options_and_no_argument_holds_a_secret(tmp_path: Path) -> None:
    """Token, token file, settings file and log options reach each child, by its environment only.

    The page asks the API alone: it gets no token.
    """
    settings = UpSettings(token="s3cret", token_file="t", log_level="debug", log_format="json")

    config = tmp_path / "k.toml"
    config.write_text("")
    specs = plan.services(settings, config)

    assert [spec.name for spec in specs] == ["controller", "worker", "api", "web"]
    for spec in specs:
        assert (spec.env.get("KODOLLY_TOKEN") == "s3cret") is (spec.name != "web")
        assert (spec.env.get("KODOLLY_TOKEN_FILE") == "t") is (spec.name != "web")
        assert dict(spec.env).items() >= {
            ("KODOLLY_CONFIG", str(config)),
            ("KODOLLY_LOG_LEVEL", "debug"),
            ("KODOLLY_LOG_FORMAT", "json"),
        }
        assert "s3cret" not in " ".join(spec.argv)


def test_secrets_of_others_are_taken_away() -> None:
    """What is in the supervisor's own environment reaches only the process that has a use for it."""
    kept = {spec.name: SECRETS - spec.without for spec in plan.services(UpSettings())}

    token = {"KODOLLY_TOKEN", "KODOLLY_TOKEN_FILE"}
    assert kept == {
        "controller": token | {"KODOLLY_CONTROLLER_WORKER_TOKENS_FILE"},
        "worker": token | {"KODOLLY_WORKER_ENGINE_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"},
        "api": token
        | {"KODOLLY_API_CLIENT_KEYS", "KODOLLY_API_CLIENT_KEYS_FILE", "KODOLLY_API_STORE"},
        "web": {"KODOLLY_WEB_API_KEY"},
    }


def test_a_page_that_shares_a_settings_file_forgets_the_token(tmp_path: Path) -> None:
    """One file for all processes may hold it."""
    file = tmp_path / "k.toml"
    file.write_text('[common]\ntoken = "s3cret"\n')

    assert load(WebSettings, ["--config", str(file)], "").token is None
    assert load(ApiSettings, ["--config", str(file)], "").token == "s3cret"


def test_the_store_is_in_home_unless_the_api_names_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that a settings file or the environment gives to `kodolly api` stays."""
    monkeypatch.delenv("KODOLLY_API_STORE", raising=False)
    home = tmp_path / "home"
    config = tmp_path / "k.toml"

    def api_flags(text: str) -> tuple[str, ...]:
        config.write_text(text)
        specs = plan.services(UpSettings(home=str(home)), config)
        return tuple(next(spec for spec in specs if spec.name == "api").argv)

    flags = api_flags("")
    assert flags[flags.index("--store") + 1] == f"sqlite:///{home / 'store.sqlite3'}"
    assert "--store" not in api_flags('[api]\nstore = "postgresql://u:p@h/d"\n')
    monkeypatch.setenv("KODOLLY_API_STORE", "none")
    assert "--store" not in api_flags("")


def test_what_nobody_set_is_not_passed_on() -> None:
    """Without token and settings file the children's environment names none."""
    for spec in plan.services(UpSettings()):
        assert not {"KODOLLY_TOKEN", "KODOLLY_TOKEN_FILE", "KODOLLY_CONFIG"} & spec.env.keys()


def test_each_worker_and_engine_has_a_port() -> None:
    """Agents and engines take a run of ports each; without the page its port is not taken."""
    taken = plan.listeners(UpSettings(workers=2, web=False))

    assert sorted(listener.port for listener in taken) == [8000, 21001, 21002, 21003, 22002, 22003]


def test_every_worker_gets_the_engines_arguments() -> None:
    """An argument that begins with a dash stays one word."""
    given = ("--enable-auto-tool-choice", "--tool-call-parser=hermes")
    specs = plan.services(UpSettings(workers=2, engine="vllm", engine_args=given))
    workers = [spec for spec in specs if spec.name.startswith("worker")]
    assert len(workers) == 2
    for spec in workers:
        assert [f"--engine-args={argument}" for argument in given] == [
            word for word in spec.argv if word.startswith("--engine-args")
        ]


def test_every_worker_gets_the_adapters() -> None:
    """Each adapter reaches each worker as a flag of its own."""
    specs = plan.services(UpSettings(workers=2, engine="vllm", adapters=("a=x", "b=y")))
    workers = [spec for spec in specs if spec.name.startswith("worker")]

    assert len(workers) == 2
    for spec in workers:
        given = [spec.argv[i + 1] for i, word in enumerate(spec.argv) if word == "--adapters"]
        assert given == ["a=x", "b=y"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (UpSettings(web_port=8000), "--api-port and --web-port both take port 8000"),
        (UpSettings(controller_port=22002), "--controller-port and --worker-port both take"),
        (UpSettings(workers=2, api_port=21003), "--worker-port and --api-port both take"),
        (UpSettings(worker_port=65000), "--worker-port: 65000 is too high: .* up to 66000"),
        (UpSettings(worker_port=64535, workers=2), "up to 65536, beyond 65535"),
    ],
)
def test_ports_that_cannot_be_are_told_by_flag(settings: UpSettings, said: str) -> None:
    """Two flags with one port, or an engine's port beyond the last, are refused by name."""
    with pytest.raises(SettingsError, match=said):
        plan.listeners(settings)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_taken_port_is_found_on_the_host_it_is_meant_for(host: str) -> None:
    """IPv4, IPv6 and names alike: a free port passes, a taken one is told with its flag."""
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    ports = [free_port() for _ in range(3)]
    try:
        other = socket.create_server(address[:2], family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with other:
        taken = other.getsockname()[1]
        settings = UpSettings(
            host=host, api_port=taken, controller_port=ports[0], worker_port=ports[1], web=False
        )
        with pytest.raises(SettingsError, match=rf"port {taken} .* with --api-port"):
            check_ports(settings)
    check_ports(settings)


def test_a_host_that_is_none_is_one_clear_line() -> None:
    """A name that does not resolve is the flag's fault, not a port's."""
    settings = UpSettings(
        host="no-such-host.invalid", controller_port=free_port(), worker_port=free_port()
    )
    with pytest.raises(SettingsError, match=r"--host no-such-host\.invalid"):
        check_ports(settings)


@pytest.mark.parametrize(
    ("host", "page", "reached"),
    [
        ("127.0.0.1", "http://127.0.0.1:7860", "http://127.0.0.1:8000"),
        ("::1", "http://[::1]:7860", "http://[::1]:8000"),
        ("0.0.0.0", "http://0.0.0.0:7860", "http://127.0.0.1:8000"),
        ("::", "http://[::]:7860", "http://[::1]:8000"),
    ],
)
def test_addresses_are_written_as_urls_want_them(host: str, page: str, reached: str) -> None:
    """IPv6 stands in brackets; the page reaches an API on all addresses over loopback."""
    settings = UpSettings(host=host)

    web = plan.services(settings)[-1]

    assert plan.page_url(settings) == page
    assert web.argv[web.argv.index("--api") + 1] == reached


@pytest.mark.parametrize(
    ("config", "asked", "offered"),
    [
        ('{"temperature": 0.3}', None, ["0.3"]),
        ('{"temperature": 0.3}', 1.2, ["1.2"]),
        ('{"temperature": 0.3}', 0.0, ["0.0"]),
        ('{"temperature": null}', None, []),
        ('{"temperature": 40}', None, []),
        ("[]", None, []),
        ("no JSON", None, []),
        (None, None, []),
    ],
)
def test_the_page_offers_the_models_own_temperature(
    tmp_path: Path, config: str | None, asked: float | None, offered: list[str]
) -> None:
    """The slider starts where the model's generation config says, or where --temperature does."""
    if config is not None:
        (tmp_path / "generation_config.json").write_text(config, "utf-8")

    web = plan.services(UpSettings(model=str(tmp_path), temperature=asked))[-1]

    assert [
        web.argv[i + 1] for i, word in enumerate(web.argv) if word == "--temperature"
    ] == offered


def test_the_conversation_template_reaches_every_worker() -> None:
    """`kodolly up --conv-template` is the workers' option of that name."""
    for spec in plan.services(UpSettings(workers=2, conv_template="dolly-ko")):
        has_flag = "--conv-template" in spec.argv
        assert has_flag == spec.name.startswith("worker")


def test_what_an_engine_is_set_to_reaches_every_worker() -> None:
    """Parsers, runner and aliases; what nobody set is left to the worker."""
    given = UpSettings(
        workers=2, tool_parser="none", reasoning_parser="qwen3", runner="pooling",
        model_aliases=("a", "b"),
    )  # fmt: skip
    for spec in plan.services(given):
        if spec.name.startswith("worker"):
            flags = " ".join(spec.argv)
            for flag in (
                *("--tool-parser none", "--reasoning-parser qwen3", "--runner pooling"),
                "--model-aliases a,b",
            ):
                assert flag in flags
    plain = {word for spec in plan.services(UpSettings()) for word in spec.argv}
    assert not plain & {"--tool-parser", "--reasoning-parser", "--runner", "--model-aliases"}
