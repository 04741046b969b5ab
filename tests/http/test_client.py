"""The client for calls that answer whole: what it takes from its surroundings, and what it reports."""

import httpx
import pytest
from aiohttp import web
from support.apps import serving_aiohttp
from support.processes import free_port

from kodolly.http.client import CALL_ERRORS, describe_call_error, new_client


async def test_it_heeds_no_proxy_and_keeps_no_cookie(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine's proxy is not for calls between our processes; a worker cannot leave a mark here."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    cookies: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        cookies.append(request.headers.get("Cookie"))
        return web.Response(headers={"Set-Cookie": "mark=1"})

    app = web.Application()
    app.router.add_get("/", answer)
    async with serving_aiohttp(app) as url, new_client() as client:
        for _ in range(2):
            assert (await client.get(url)).status_code == 200
    assert cookies == [None, None]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "user:secret@127.0.0.1"])
async def test_a_refused_connection_is_called_that(host: str) -> None:
    """Not only "all attempts failed"; and no password gets into a log."""
    async with new_client() as client:
        with pytest.raises(httpx.ConnectError) as failure:
            await client.get(f"http://{host}:{free_port()}")
    described = describe_call_error(failure.value)
    assert described.startswith("ConnectError: ")
    assert "Connect call failed" in described or "refused" in described.lower()
    assert "secret" not in described


@pytest.mark.parametrize("url", ["http://[bad", "ftp://x/", "http://x:99999/", "http://\n/"])
async def test_a_url_that_cannot_be_used_is_a_failed_call(url: str) -> None:
    """And no crash: URLs come from workers."""
    async with new_client() as client:
        with pytest.raises(CALL_ERRORS):
            await client.get(url)
