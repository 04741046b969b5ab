"""The settings of `kodolly web`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kodolly.options import option
from kodolly.settings.common import (
    API_PORT,
    LOCAL,
    OPEN,
    PUBLISHED,
    WEB_PORT,
    HttpSettings,
    tls_cert,
    tls_key,
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
