"""Attach to an OpenAI-compatible server that already runs: vLLM elsewhere, SGLang, llama.cpp."""

from __future__ import annotations

from urllib.parse import urlsplit

import aiohttp

from kodolly.engines.client import EngineClient
from kodolly.errors import SettingsError


def normalise_url(url: str) -> str:
    """The server's root: `http://host:port[/prefix]`, however the URL was given.

    OpenAI clients name a server with `/v1` at the end; both forms are taken. Raises SettingsError
    when there is no http(s) host in it, or when it carries a key, a query or a fragment.
    """
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port  # a port that is no number raises here
    except ValueError as error:
        raise SettingsError(f"engine URL {text!r} cannot be read: {error}") from None
    if "@" in parts.netloc:
        raise SettingsError("an engine URL holds no credentials; give the key as its own setting")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise SettingsError(f"engine URL {text!r} is not of the form http://host:port")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


async def discover(url: str, api_key: str | None) -> list[str]:
    """Names of the models that the server at `url` offers.

    Raises SettingsError for the URL, EngineCallError when the server does not answer as it should.
    """
    async with aiohttp.ClientSession() as session:
        return await EngineClient(normalise_url(url), api_key, session).models()
