"""Engines that somebody else runs: any OpenAI-compatible server (vLLM, SGLang, llama.cpp)."""

from __future__ import annotations

from urllib.parse import urlsplit

from kodolly.engines.client import EngineClient
from kodolly.errors import SettingsError
from kodolly.http.client import new_client


def normalise_url(url: str) -> str:
    """The server's root, `http://host:port[/prefix]`. OpenAI's form of it, with `/v1`, is accepted.

    Raises SettingsError if the URL has no http(s) host, or has a key, a query or a fragment.
    """
    text = url.strip()
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port  # raises for a port that is not a number
    except ValueError as error:
        raise SettingsError(f"--engine-url: {text!r} cannot be read: {error}") from None
    if "@" in parts.netloc:
        raise SettingsError(
            "--engine-url: leave out user name and password; give the key by --engine-key"
        )
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise SettingsError(f"--engine-url: {text!r} is not of the form http://host:port")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


async def discover(url: str, api_key: str | None) -> list[str]:
    """Names of the models that the server at `url` offers.

    Raises SettingsError for a bad URL, EngineCallError if the server cannot be reached or refuses.
    """
    async with new_client() as client:
        return await EngineClient(normalise_url(url), api_key, client).models()
