"""`kodolly web`."""

from __future__ import annotations

from collections.abc import Sequence

from kodolly import exposure
from kodolly.options import environment_name
from kodolly.settings import WebSettings, load
from kodolly.settings.common import checked_url
from kodolly.web.app import serve


def main(argv: Sequence[str]) -> int:
    """Serves the chat page until SIGTERM or Ctrl-C. Raises SettingsError."""
    settings = load(WebSettings, argv, "The chat page.")
    checked_url("--api", settings.api)
    exposure.require_login(
        settings.host,
        settings.published_address,
        is_open=settings.open,
        variable=environment_name(WebSettings, "open"),
    )
    serve(settings)
    return 0
