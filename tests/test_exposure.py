"""A process that others reach and that asks for no key starts only when told to by name."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kodolly.api.main import main as api
from kodolly.controller.app import main as controller
from kodolly.errors import SettingsError
from kodolly.exposure import is_loopback
from kodolly.settings import UpSettings
from kodolly.supervisor.app import main as up
from kodolly.supervisor.plan import services
from kodolly.web.main import main as web
from kodolly.worker.app import main as worker

Main = Callable[[Sequence[str]], int]
MAINS: dict[str, Main] = {
    "api": api,
    "web": web,
    "controller": controller,
    "worker": worker,
    "up": up,
}
# Every address: the unspecified one of both families, and one that only others' machines have.
ELSEWHERE = ["0.0.0.0", "::", "192.0.2.7"]
WORKER = ("--engine", "openai", "--engine-url", "http://127.0.0.1:1", "--advertise", "box")


class Started(Exception):
    """The process came as far as to serve."""


@pytest.fixture(autouse=True)
def nothing_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each process stops right before it would serve."""

    def stop(*_: object, **__: object) -> None:
        raise Started

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kodolly.api.prefork.serve", stop)
    monkeypatch.setattr("kodolly.controller.app.server.run", stop)
    monkeypatch.setattr("kodolly.web.main.serve", stop)
    monkeypatch.setattr("kodolly.worker.app.Worker.discover", stop)
    monkeypatch.setattr("kodolly.supervisor.app.check_extras", lambda *_: None)
    monkeypatch.setattr("kodolly.supervisor.app.check_ports", lambda *_: None)
    monkeypatch.setattr("kodolly.supervisor.app.ensure_model", stop)
    monkeypatch.setattr("kodolly.settings.loading.configure", lambda *_: None)


@pytest.mark.parametrize("host", ELSEWHERE)
@pytest.mark.parametrize(
    ("process", "options", "cure", "variable"),
    [
        ("api", (), "KODOLLY_API_CLIENT_KEYS", "KODOLLY_API_OPEN"),
        ("web", (), "a proxy with a login", "KODOLLY_WEB_OPEN"),
        ("controller", (), "KODOLLY_TOKEN", "KODOLLY_CONTROLLER_OPEN"),
        ("worker", WORKER, "KODOLLY_TOKEN", "KODOLLY_WORKER_OPEN"),
        ("up", (), "KODOLLY_API_CLIENT_KEYS", "KODOLLY_UP_OPEN"),
    ],
)
def test_beyond_loopback_without_keys_is_refused_unless_open(
    process: str,
    options: tuple[str, ...],
    cure: str,
    variable: str,
    host: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message names the address, the cure and the way to open it; `--open` or its variable does."""
    argv = ["--host", host, *options]
    with pytest.raises(SettingsError) as refusal:
        MAINS[process](argv)
    for part in (f"--host {host} is reachable", cure, f"--open ({variable}=true)"):
        assert part in str(refusal.value)

    with pytest.raises(Started):
        MAINS[process]([*argv, "--open"])
    monkeypatch.setenv(variable, "true")
    with pytest.raises(Started):
        MAINS[process](argv)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
@pytest.mark.parametrize("process", ["api", "web", "controller", "up"])
def test_on_this_machine_no_key_is_needed(process: str, host: str) -> None:
    """The defaults go on working without a key."""
    with pytest.raises(Started):
        MAINS[process](["--host", host])


@pytest.mark.parametrize("process", ["api", "up"])
def test_an_api_with_keys_may_be_reached(process: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a client key the API alone starts anywhere; `kodolly up` still asks about its page."""
    monkeypatch.setenv("KODOLLY_API_CLIENT_KEYS", "sk-1")
    alone = ["--no-web"] if process == "up" else []
    with pytest.raises(Started):
        MAINS[process](["--host", "0.0.0.0", *alone])
    if process == "up":
        with pytest.raises(SettingsError, match="the page asks nobody"):
            up(["--host", "0.0.0.0"])


def test_the_children_of_up_are_opened_with_it() -> None:
    """`kodolly up --open` says so to API and page, and to no other process."""
    opened = services(UpSettings(host="0.0.0.0", open=True))
    closed = services(UpSettings(host="0.0.0.0"))

    assert [spec.name for spec in opened if "--open" in spec.argv] == ["api", "web"]
    assert not [spec.name for spec in closed if "--open" in spec.argv]


@pytest.mark.parametrize("process", ["api", "web"])
@pytest.mark.parametrize("published", ["127.0.0.1", "localhost", "::1"])
def test_in_a_container_the_published_address_counts(process: str, published: str) -> None:
    """Inside a container all addresses are listened on: what Docker publishes is what others reach."""
    with pytest.raises(Started):
        MAINS[process](["--host", "0.0.0.0", "--published-address", published])


@pytest.mark.parametrize("process", ["api", "web"])
@pytest.mark.parametrize("published", [*ELSEWHERE, "no-such-name.invalid", "*"])
def test_a_published_address_that_others_reach_is_refused(process: str, published: str) -> None:
    """Also one that cannot be looked up: what is not known to be loopback is not."""
    with pytest.raises(SettingsError, match="the published address"):
        MAINS[process](["--host", "0.0.0.0", "--published-address", published])


@pytest.mark.parametrize("host", ["", "no-such-name.invalid", "0.0.0.0", "::ffff:192.0.2.7"])
def test_what_is_not_known_to_be_loopback_is_not(host: str) -> None:
    """No name, an unknown one, every address: none of them is this machine alone."""
    assert not is_loopback(host)
