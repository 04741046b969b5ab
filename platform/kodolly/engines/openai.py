"""Engines that somebody else runs: any OpenAI-compatible server (vLLM, SGLang, llama.cpp)."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass

from kodolly.engines.client import EngineClient
from kodolly.errors import SettingsError
from kodolly.http.client import new_client
from kodolly.protocol.addresses import AddressError, canonical_url


def normalise_url(url: str) -> str:
    """The server's root, `http://host:port[/prefix]`. OpenAI's form of it, with `/v1`, is accepted.

    Raises SettingsError if the URL has no http(s) host, or has a key, a query or a fragment.
    """
    text = url.strip()
    try:
        return canonical_url(text, with_path=True).removesuffix("/v1").rstrip("/")
    except AddressError as error:
        hint = "; give the key by --engine-key" if "@" in text else ""
        raise SettingsError(f"--engine-url: {_without_key(text)!r}: {error}{hint}") from None


@dataclass(frozen=True)
class Offer:
    """A model that a server offers. `parent`: the base model's name, if it is a LoRA adapter."""

    name: str
    parent: str | None = None


async def discover(url: str, api_key: str | None, tls: ssl.SSLContext | None = None) -> list[Offer]:
    """The models that the server at `url` offers, each once. `tls`: which certificates are trusted.

    Raises SettingsError for a bad URL, EngineCallError if the server cannot be reached or refuses.
    """
    async with new_client(tls) as client:
        cards = await EngineClient(normalise_url(url), api_key, client).cards()
    offers: dict[str, Offer] = {}
    for card in cards:
        parent = card.get("parent")
        named = isinstance(parent, str) and parent not in ("", card["id"])
        offers.setdefault(card["id"], Offer(card["id"], parent if named else None))
    return list(offers.values())


def _without_key(url: str) -> str:
    return re.sub(r"//[^/]*@", "//", url)
