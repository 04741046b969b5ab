"""Host names and origins: what is admitted, what is refused and how, and that every face asks."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import cache
from pathlib import Path

import httpx
import pytest
from starlette.types import ASGIApp
from support.apps import serving
from support.scripted_engine import Script, ScriptedEngine

from kodolly.api.app import create_app as create_api
from kodolly.controller.app import Controller
from kodolly.controller.app import create_app as create_controller
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.errors import ApiError, BadRequest, ForeignOrigin, HostNotAllowed, SettingsError
from kodolly.http.hosts import CACHE_SIZE, AllowedHosts
from kodolly.http.origins import AllowedOrigins
from kodolly.http.site_guard import SiteGuard
from kodolly.settings import ApiSettings, WebSettings, WorkerSettings
from kodolly.web.app import create_guarded_app
from kodolly.worker.app import Worker
from kodolly.worker.app import create_app as create_worker
from kodolly.worker.model import ServedModel

EVIL = "https://evil.example"
Header = tuple[str, str]
Face = tuple[httpx.AsyncClient, tuple[str, ...]]


def admitted(guard: SiteGuard, *headers: Header, method: str = "POST", version: str = "1.1") -> str:
    """Either "yes", the allowed foreign origin, or the name of the error."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "method": method, "http_version": version, "headers": raw}
    try:
        return (guard.check(scope) or b"yes").decode()
    except ApiError as error:
        return type(error).__name__


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.0.0.1:8000", "192.168.0.7:80", "[::1]", "[::1]:8000", "[fe80::1]"),
        *(
            "localhost",
            "LOCALHOST:8000",
            "localhost.",
            "a.localhost:1",
            "this-box",
            "This-Box:21001",
        ),
        *("host.docker.internal:8000", "advertised.example:21002", "chat.example", "api:8000"),
        *("a.wild.example", "a.b.wild.example:443", "xn--bj0bj06e.kr"),
    ],
)
def test_own_names_and_addresses_are_admitted(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """IP literals, loopback names, this machine, and what the operator named, in any legal form."""
    monkeypatch.setattr("socket.gethostname", lambda: "This-Box")
    names = ["Chat.example.", "api", "*.wild.example", "한글.kr"]
    guard = SiteGuard(AllowedHosts(names, "advertised.example", "0.0.0.0", None))
    for _ in range(2):  # the second time from the cache
        assert admitted(guard, ("Host", host)) == "yes"


@pytest.mark.parametrize(
    ("host", "error"),
    [
        *((host, HostNotAllowed) for host in ("evil.example", "evil.example:8000", "wild.example")),
        *((host, HostNotAllowed) for host in ("127.0.0.1.evil.example", "localhost.evil.example")),
        *((host, HostNotAllowed) for host in ("notlocalhost", "127.1", "0x7f000001", "2130706433")),
        *((host, HostNotAllowed) for host in ("evilwild.example", "a@localhost", "localhost,evil")),
        *(
            (host, BadRequest)
            for host in ("", ":80", "localhost:x", "[::1", "[localhost]", "[::1]x")
        ),
        *((host, BadRequest) for host in ("::1", "localhost:80:80", "localhost:8000@evil.example")),
    ],
)
def test_foreign_and_broken_hosts_are_refused(host: str, error: type[ApiError]) -> None:
    """Whatever a page's own name may look like, and however a Host may be spelled."""
    guard = SiteGuard(AllowedHosts(["*.wild.example"]))
    for _ in range(2):
        assert admitted(guard, ("Host", host)) == error.__name__


def test_host_comes_once() -> None:
    """None is a 400, except from HTTP/1.0, which no browser speaks; two are a 400 even if equal."""
    guard = SiteGuard()
    assert admitted(guard) == "BadRequest"
    assert admitted(guard, version="1.0") == "yes"
    assert admitted(guard, ("Host", "localhost"), ("Host", "localhost")) == "BadRequest"
    assert admitted(guard, ("Host", "evil.example"), version="1.0") == "HostNotAllowed"


def test_any_host_only_when_asked_for_by_name() -> None:
    """`*` admits every name; nothing else does."""
    assert admitted(SiteGuard(AllowedHosts(["*"])), ("Host", "evil.example")) == "yes"
    assert admitted(SiteGuard(AllowedHosts([])), ("Host", "evil.example")) == "HostNotAllowed"


def test_the_message_says_which_option_to_set() -> None:
    """With the name as one would write it, and none of its control characters."""
    with pytest.raises(
        HostNotAllowed, match=r"--allowed-hosts gpu-box\.lan .*KODOLLY_ALLOWED_HOSTS"
    ):
        AllowedHosts().check(b"gpu-box.lan:21001")
    with pytest.raises(HostNotAllowed) as refusal:
        AllowedHosts().check(b"a\x1b[31m\xff" * 1000)
    assert refusal.value.message.isascii()
    assert refusal.value.message.isprintable()
    assert len(refusal.value.message) < 1500


def test_a_stranger_cannot_fill_the_cache() -> None:
    """Every address with every port is a Host that is admitted, so there is no end of them."""
    hosts = AllowedHosts()
    for port in range(CACHE_SIZE * 3):
        hosts.check(b"10.0.0.1:%d" % port)
    assert len(hosts._cache) <= CACHE_SIZE


@pytest.mark.parametrize(
    "name", ["http://a.example", "a.example:80", "a/b", "a b", "a.*.example", "*a.example", ""]
)
def test_a_name_that_no_request_could_have_is_refused_at_start(name: str) -> None:
    """It would be on the list, and never help."""
    with pytest.raises(SettingsError, match="allowed_hosts"):
        AllowedHosts([name])


@pytest.mark.parametrize(
    "origin", ["app.example", "https://a.example/path", "null", "", "https://한글.kr"]
)
def test_an_origin_that_no_page_could_have_is_refused_at_start(origin: str) -> None:
    """`null` too: a page of any site can make itself one."""
    with pytest.raises(SettingsError, match="allowed_origins"):
        AllowedOrigins([origin])


HOST = ("Host", "localhost:8000")


@pytest.mark.parametrize(
    ("method", "headers", "result"),
    [
        ("POST", [], "yes"),
        ("POST", [("Origin", "http://localhost:8000")], "yes"),
        ("POST", [("Origin", "HTTP://LocalHost:8000")], "yes"),
        ("POST", [("Origin", EVIL), ("Sec-Fetch-Site", "same-origin")], "yes"),  # a proxy's Host
        ("GET", [("Sec-Fetch-Site", "none")], "yes"),
        ("GET", [("Sec-Fetch-Site", "same-origin")], "yes"),
        ("POST", [("Origin", EVIL)], "ForeignOrigin"),
        ("GET", [("Origin", EVIL)], "ForeignOrigin"),
        ("OPTIONS", [("Origin", EVIL)], "ForeignOrigin"),
        ("POST", [("Origin", "null")], "ForeignOrigin"),
        ("POST", [("Origin", "")], "ForeignOrigin"),
        ("POST", [("Origin", "http://localhost:3000")], "ForeignOrigin"),
        ("POST", [("Origin", "http://localhost:8000.evil.example")], "ForeignOrigin"),
        (
            "POST",
            [("Origin", "http://localhost:8000"), ("Sec-Fetch-Site", "cross-site")],
            "ForeignOrigin",
        ),
        ("POST", [("Sec-Fetch-Site", "cross-site")], "ForeignOrigin"),
        ("GET", [("Sec-Fetch-Site", "cross-site")], "ForeignOrigin"),
        ("GET", [("Sec-Fetch-Site", "same-site")], "ForeignOrigin"),
        ("POST", [("Origin", "http://localhost:8000"), ("Origin", EVIL)], "BadRequest"),
        ("POST", [("Origin", "https://app.example")], "https://app.example"),
        (
            "GET",
            [("Origin", "https://app.example"), ("Sec-Fetch-Site", "cross-site")],
            "https://app.example",
        ),
        ("POST", [("Origin", "http://app.example")], "ForeignOrigin"),
        ("POST", [("Origin", "https://app.example:8443")], "ForeignOrigin"),
    ],
)
def test_pages_of_other_origins_are_refused(
    method: str, headers: list[Header], result: str
) -> None:
    """Our own pages and clients that are no browsers pass; others' pages only from the list."""
    guard = SiteGuard(None, AllowedOrigins(["https://App.example/"]))
    assert admitted(guard, HOST, *headers, method=method) == result


@pytest.mark.parametrize(
    ("method", "mode", "dest", "result"),
    [
        ("GET", "navigate", "document", "yes"),
        ("POST", "navigate", "document", "ForeignOrigin"),
        ("GET", "navigate", "iframe", "ForeignOrigin"),
        ("GET", "no-cors", "image", "ForeignOrigin"),
        ("GET", "no-cors", "script", "ForeignOrigin"),
    ],
)
def test_a_link_is_followed_and_nothing_is_embedded(
    method: str, mode: str, dest: str, result: str
) -> None:
    """From another site one may come to the page, but not draw it into one's own."""
    where = [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Mode", mode), ("Sec-Fetch-Dest", dest)]
    assert admitted(SiteGuard(), HOST, *where, method=method) == result


# Every face, as its own process composes it.


def api_app(_: Path) -> ASGIApp:
    return create_api(ApiSettings(controller="http://127.0.0.1:1"))


def controller_app(_: Path) -> ASGIApp:
    return create_controller(Controller(Registry(90, 3), Dispatcher("shortest_queue"), None))


def worker_app(scratch: Path) -> ASGIApp:
    settings = WorkerSettings(engine="openai", engine_url="http://127.0.0.1:1")
    return create_worker(Worker(settings, scratch), ServedModel("demo", "demo", None), None)


@cache
def page_app(_: Path) -> ASGIApp:
    return create_guarded_app(WebSettings(api="http://127.0.0.1:1"))


FACES: dict[str, tuple[Callable[[Path], ASGIApp], tuple[str, ...]]] = {
    "api": (
        api_app,
        ("/health", "/ready", "/metrics", "/v1/models", "/v1/chat/completions", "/nowhere"),
    ),
    "controller": (
        controller_app,
        (
            "/health",
            "/watch",
            "/metrics",
            "/sd/workers",
            "/workers",
            "/register_worker",
            "/nowhere",
        ),
    ),
    "worker": (
        worker_app,
        ("/health", "/ready", "/metrics", "/worker_get_status", "/worker_generate_stream"),
    ),
    "page": (page_app, ("/", "/metrics", "/config", "/gradio_api/queue/join", "/nowhere")),
}


@pytest.fixture(params=FACES)
async def face(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Face]:
    """A client of each, and the paths to try."""
    create, paths = FACES[request.param]
    async with (
        serving(create(tmp_path)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        yield client, paths


async def test_every_face_refuses_foreign_hosts_and_pages(face: Face) -> None:
    """On every path, for every method: also for health checks, errors and paths that are none."""
    client, paths = face
    port = client.base_url.port
    for path in paths:
        for method in ("GET", "POST", "OPTIONS"):
            for host in ("evil.example", f"evil.example:{port}"):
                response = await client.request(method, path, headers={"Host": host})
                assert response.status_code == 421, (method, path)
                assert "--allowed-hosts evil.example" in response.text
            response = await client.request(method, path, headers={"Origin": EVIL})
            assert response.status_code == 403, (method, path)
            assert not [name for name in response.headers if name.startswith("access-control")]
        response = await client.get(path, headers={"Sec-Fetch-Site": "cross-site"})
        assert response.status_code == 403


async def test_every_face_serves_its_own_names(face: Face) -> None:
    """By address, by localhost, and from its own page."""
    client, paths = face
    for host in (f"127.0.0.1:{client.base_url.port}", "localhost", "[::1]:1"):
        assert (await client.get(paths[0], headers={"Host": host})).status_code == 200


# CORS


@pytest.fixture
async def open_api() -> AsyncIterator[httpx.AsyncClient]:
    """An API that takes calls of one origin's pages."""
    settings = ApiSettings(
        controller="http://127.0.0.1:1",
        client_keys=("sk-1",),
        allowed_origins=("https://app.example",),
    )
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serving(create_api(settings)))
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=url, trust_env=False))


async def test_a_preflight_of_a_listed_origin_is_answered(open_api: httpx.AsyncClient) -> None:
    """Method, headers and age; no cookies, no star. Others get none of it."""
    ask = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    path = "/v1/chat/completions"
    answer = await open_api.options(path, headers={"Origin": "https://app.example", **ask})
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == ask["Access-Control-Request-Headers"]
    assert answer.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in answer.headers
    assert (await open_api.options(path, headers={"Origin": EVIL, **ask})).status_code == 403


async def test_a_listed_page_may_read_answers_and_errors(open_api: httpx.AsyncClient) -> None:
    """Also a 401 and a 404, or a developer sees only that the network failed."""
    headers = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    key = {"Authorization": "Bearer sk-1"}
    for path, more, status in (("/v1/models", key, 200), ("/v1/models", {}, 401), ("/x", key, 404)):
        answer = await open_api.get(path, headers={**headers, **more})
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "X-Request-Id" in answer.headers["access-control-expose-headers"]


async def test_a_stream_reaches_a_listed_page() -> None:
    """Tokens are written past ASGI, but the head with CORS's headers goes first."""
    controller = Controller(Registry(90, 3), Dispatcher("shortest_queue"), None)
    async with (
        ScriptedEngine(Script(model="demo", tokens=["안녕", "!"])) as engine,
        serving(create_controller(controller)) as controller_url,
    ):
        await engine.register(controller_url, kodolly={})
        settings = ApiSettings(controller=controller_url, allowed_origins=("*",))
        async with (
            serving(create_api(settings)) as url,
            httpx.AsyncClient(base_url=url, trust_env=False) as client,
        ):
            body = {"model": "demo", "stream": True, "messages": [{"role": "user", "content": "?"}]}
            answer = await client.post("/v1/chat/completions", json=body, headers={"Origin": EVIL})
        controller.stopping.set()
    assert answer.headers["access-control-allow-origin"] == EVIL
    assert "안녕" in answer.text


def test_errors_have_their_statuses() -> None:
    """421 for a wrong host, 403 for a foreign page."""
    assert (HostNotAllowed.status, ForeignOrigin.status) == (421, 403)
