"""Tokens of groups: what a stolen one opens, what it cannot, and what is wrong with their file."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from support.apps import serving, serving_aiohttp

from kodolly.controller.app import Controller, create_app
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.groups import Group, read_groups
from kodolly.controller.registry import Registry
from kodolly.errors import Forbidden, SettingsError

FLEET, KOREAN, OTHER = "fleet-token", "korean-token", "other-token"
FILE = f"""\
# groups
[korean]
token = "{KOREAN}"
models = ["dolly-ko", "dolly-ko-*"]
addresses = ["10.0.1.0/24", "worker-a", "*.korean.internal"]

[other]
token = "{OTHER}"
models = ["*"]
addresses = ["*"]
"""
NAME = "http://10.0.1.7:21002"


def registration(name: str = NAME, *models: str, **engine: Any) -> dict[str, Any]:
    block = {"state": "ready", "engine_url": name.replace("21002", "22002")} | engine
    status = {"model_names": list(models or ("dolly-ko",))}
    return {"worker_name": name, "worker_status": status, "kodolly": block}


class Caller:
    """Calls a controller with one token."""

    def __init__(self, client: httpx.AsyncClient, token: str) -> None:
        self._client, self._headers = client, {"Authorization": f"Bearer {token}"}

    async def __call__(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        method = "GET" if body is None else "POST"
        response = await self._client.request(method, path, json=body, headers=self._headers)
        return response.status_code, response.text


@asynccontextmanager
async def controller(file: Path) -> AsyncIterator[tuple[Caller, Caller, Caller]]:
    """A controller with both groups; calls by the fleet's token and each group's."""
    file.write_text(FILE)
    groups = read_groups(str(file), FLEET)
    app = create_app(
        Controller(Registry(90, 3), Dispatcher("shortest_queue"), FLEET, groups=groups), FLEET
    )
    async with serving(app) as url, httpx.AsyncClient(base_url=url) as client:
        yield Caller(client, FLEET), Caller(client, KOREAN), Caller(client, OTHER)


async def test_a_user_name_makes_no_address_a_group_s_own(tmp_path: Path) -> None:
    """`worker-a@` in front of another host is refused as an address before it is compared."""
    async with controller(tmp_path / "groups.toml") as (fleet, korean, _):
        body = registration("http://worker-a@10.9.9.9:21002")
        assert (await korean("/register_worker", body))[0] == 400
        assert '"workers":[]' in (await fleet("/workers"))[1]


async def test_a_group_registers_its_own(tmp_path: Path) -> None:
    """Its models and addresses: 200; then it beats and leaves like any worker."""
    async with controller(tmp_path / "groups.toml") as (fleet, korean, _):
        assert (await korean("/register_worker", registration()))[0] == 200
        beat = {"worker_name": NAME, "queue_length": 3, "kodolly": registration()["kodolly"]}
        assert await korean("/receive_heart_beat", beat) == (200, '{"exist":true}')
        assert '"queue_length":3' in (await fleet("/workers"))[1]
        assert await korean("/deregister_worker", {"worker_name": NAME}) == (200, '{"exist":true}')
        unknown = {"worker_name": NAME, "queue_length": 0}
        assert await korean("/receive_heart_beat", unknown) == (200, '{"exist":false}')


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (registration(NAME, "llama"), "may not register the model 'llama'"),
        (registration(NAME, "dolly-ko", "xdolly-ko-1"), "the model 'xdolly-ko-1'"),
        (registration("http://10.0.2.7:21002"), "may not register the address http://10.0.2.7"),
        (registration("http://worker-b:21002"), "the address http://worker-b:21002"),
        (registration("http://x.korean.internal.evil:21002"), "the address"),
        (registration(engine_url="http://10.9.9.9:22002"), "the address http://10.9.9.9:22002"),
        (registration(engine_url=None), "a FastChat worker needs the controller's own token"),
        (registration() | {"kodolly": None}, "a FastChat worker needs"),
    ],
)
async def test_what_lies_outside_a_group_is_403_with_a_sentence(
    body: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """A model, a worker's address, an engine's address: none may be another's."""
    async with controller(tmp_path / "groups.toml") as (fleet, korean, _):
        status, text = await korean("/register_worker", body)
        assert (status, message in text) == (403, True), text
        assert '"workers":[]' in (await fleet("/workers"))[1]


async def test_a_heartbeat_cannot_point_elsewhere(tmp_path: Path) -> None:
    """The table keeps the engine's address of the registration."""
    async with controller(tmp_path / "groups.toml") as (fleet, korean, _):
        await korean("/register_worker", registration())
        beat = {"worker_name": NAME, "queue_length": 0}
        for block in ({"engine_url": "http://10.9.9.9:1"}, {"engine_url": None}):
            assert (await korean("/receive_heart_beat", beat | {"kodolly": block}))[0] == 403
        assert "10.9.9.9" not in (await fleet("/workers"))[1]


async def test_what_another_token_registered_is_not_touched(tmp_path: Path) -> None:
    """Even where two groups share an address, and for what the fleet's token registered."""
    theirs = registration("http://worker-a:21002")
    async with controller(tmp_path / "groups.toml") as (fleet, korean, other):
        for owner in (fleet, other):
            assert (await owner("/register_worker", theirs))[0] == 200
            name = {"worker_name": theirs["worker_name"]}
            for path, body in (
                ("/register_worker", theirs),
                ("/receive_heart_beat", name | {"queue_length": 9}),
                ("/deregister_worker", name),
            ):
                status, text = await korean(path, body)
                assert (status, "not registered by the token of group" in text) == (403, True)
            assert (await owner("/deregister_worker", name))[0] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/workers", None),
        ("/watch", None),
        ("/openapi.json", None),
        ("/list_models", {}),
        ("/drain_worker", {"worker_name": NAME}),
        ("/refresh_all_workers", {}),
        ("/worker_generate_stream", {"model": "dolly-ko"}),
    ],
)
async def test_a_stolen_token_reads_no_keys_and_steers_nobody(
    path: str, body: dict[str, Any] | None, tmp_path: Path
) -> None:
    """Whatever tells of other workers, or moves them, is 403; no token at all stays 401."""
    async with controller(tmp_path / "groups.toml") as (_, korean, _other):
        status, text = await korean(path, body)
        assert (status, "registers workers of its group" in text) == (403, True)
        nobody = Caller(korean._client, "wrong")
        assert (await nobody(path, body))[0] == 401
        assert (await nobody("/register_worker", registration()))[0] == 401


async def test_a_groups_worker_hears_only_its_groups_token(tmp_path: Path) -> None:
    """Who stole it learns no other: the controller asks a worker by the token it registered with."""
    heard: list[str | None] = []

    async def status(request: web.Request) -> web.Response:
        heard.append(request.headers.get("Authorization"))
        return web.json_response({"model_names": ["m"], "speed": 1, "queue_length": 0})

    async def stream(request: web.Request) -> web.Response:
        heard.append(request.headers.get("Authorization"))
        return web.Response(body=b'{"text":"x","error_code":0}\0')

    app = web.Application()
    app.router.add_post("/worker_get_status", status)
    app.router.add_post("/worker_generate_stream", stream)
    async with (
        serving_aiohttp(app) as worker,
        controller(tmp_path / "groups.toml") as (fleet, _, other),
    ):
        body = registration(worker, "m", engine_url=worker) | {"worker_status": None}
        assert (await other("/register_worker", body))[0] == 200
        await fleet("/refresh_all_workers", {})
        await fleet("/worker_generate_stream", {"model": "m"})
        assert heard == [f"Bearer {OTHER}"] * 3
        heard.clear()
        await other("/deregister_worker", {"worker_name": worker})
        assert (await fleet("/register_worker", body))[0] == 200
        assert heard == [f"Bearer {FLEET}"]


@pytest.mark.parametrize(
    ("pattern", "url", "belongs"),
    [
        ("10.0.1.0/24", "http://10.0.1.200:1", True),
        ("10.0.1.7", "http://10.0.1.7:1", True),
        ("10.0.1.7", "http://10.0.1.70:1", False),
        ("fd00::/8", "http://[fd00::1]:1", True),
        ("Worker-A", "http://worker-a:1", True),
        ("*.internal", "https://x.internal", True),
        ("*.internal", "https://internal", False),
        ("http://worker-a:21002", "http://worker-a:21002", True),
        ("http://worker-a:21002", "http://worker-a:21003", False),
        ("http://worker-a:21002", "https://worker-a:21002", False),
        ("*", "http://", False),
        ("*", "http://a:99999", False),
    ],
)
def test_addresses_are_networks_names_or_urls(pattern: str, url: str, belongs: bool) -> None:
    """Each form stands for itself and for nothing near it."""
    group = Group("g", "t", ("*",), (pattern,))
    if belongs:
        group.check_address(url)
    else:
        with pytest.raises(Forbidden):
            group.check_address(url)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no group of workers in it"),
        ("[a\n", "g.toml: "),
        ('token = "x"\n', "token stands outside of a [group]"),
        ('\n[a]\nmodels = ["*"]\naddresses = ["*"]\n', "g.toml:2: [a] needs either token or token_file"),
        ('[a]\ntoken = "x"\n\ntokne = 1\n', "g.toml:4: [a] has an unknown key 'tokne'"),
        ('[a]\ntoken = ""\n', "g.toml:2: [a] token is empty"),
        ('[a]\ntoken = 7\n', "g.toml:2: [a] token must be a text"),
        ('[a]\ntoken = "비밀"\n', "g.toml:2: [a] token holds a space, a control character or one that is not ASCII"),
        ('[a]\ntoken_file = "/gone"\n', "g.toml:2: [a] token_file: cannot read /gone"),
        ('[a]\ntoken = "x"\naddresses = ["*"]\n', 'g.toml:1: [a] needs models; ["*"] allows all'),
        ('[a]\ntoken = "x"\nmodels = ["*"]\n', "[a] needs addresses"),
        ('[a]\ntoken = "x"\nmodels = "m"\naddresses = ["*"]\n', "g.toml:3: [a] models must be a list"),
        ('[a]\ntoken = "x"\nmodels = []\naddresses = ["*"]\n', "g.toml:3: [a] models must be a list"),
        ('[a]\ntoken = "x"\nmodels = ["*"]\naddresses = ["10.0.0.1/8"]\n', "g.toml:4: [a] addresses: '10.0.0.1/8' is no network"),
        ('[a]\ntoken = "fleet-token"\nmodels = ["*"]\naddresses = ["*"]\n', "g.toml:1: [a] has the same token as the controller's own"),
        ('[a]\ntoken = "x"\nmodels = ["*"]\naddresses = ["*"]\n[b]\ntoken = "x"\nmodels = ["*"]\naddresses = ["*"]\n', "g.toml:5: [b] has the same token as that of [a]"),
    ],
)  # fmt: skip
def test_a_wrong_file_names_its_line(text: str, message: str, tmp_path: Path) -> None:
    """What cannot be meant is refused at the start, without repeating a secret."""
    file = tmp_path / "g.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_groups(str(file), FLEET)
    assert message in str(caught.value)
    assert FLEET not in str(caught.value)


def test_groups_without_a_token_of_the_controllers_own_are_refused(tmp_path: Path) -> None:
    """Without one every caller is trusted, and the groups would bound nobody."""
    with pytest.raises(SettingsError, match="needs --token or --token-file"):
        read_groups(str(tmp_path / "g.toml"), None)
    with pytest.raises(SettingsError, match=r"--worker-tokens-file: cannot read .*gone\.toml"):
        read_groups(str(tmp_path / "gone.toml"), FLEET)


async def test_an_alias_needs_the_same_right_as_a_model(tmp_path: Path) -> None:
    """Another group's name as an alias would bring its requests here."""
    async with controller(tmp_path / "groups.toml") as (_, korean, _other):
        own = registration(aliases={"dolly-ko-x": "dolly-ko"})
        assert (await korean("/register_worker", own))[0] == 200
        stolen = registration(aliases={"gpt": "dolly-ko"})
        status, text = await korean("/register_worker", stolen)
        assert status == 403
        assert "'gpt'" in text
