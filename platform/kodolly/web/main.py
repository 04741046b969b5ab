"""`kodolly web`."""

from __future__ import annotations

from collections.abc import Sequence

from kodolly.settings import WebSettings, load
from kodolly.web.app import serve


def main(argv: Sequence[str]) -> int:
    """Serves the chat page until SIGTERM or Ctrl-C."""
    serve(load(WebSettings, argv, "The chat page."))
    return 0
