"""`kodolly api --controller http://127.0.0.1:21001`: a small parent, and the processes that serve."""

from __future__ import annotations

from collections.abc import Sequence

from kodolly.api import prefork
from kodolly.http.hosts import AllowedHosts
from kodolly.http.origins import AllowedOrigins
from kodolly.http.tls import client_context, scheme, server_context
from kodolly.settings import ApiSettings, load, require_keys


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or Ctrl-C; open answers are finished first. Raises KodollyError."""
    settings = load(ApiSettings, argv, "The OpenAI-compatible API.")
    listener = prefork.inherited_listener()
    if listener is None:
        # What is wrong is said once, here, and not by every process that is started.
        settings.secret()
        require_keys(settings)
        settings.metrics_secrets()
        settings.controllers()
        settings.store_url()
        AllowedHosts(settings.allowed_hosts)
        AllowedOrigins(settings.allowed_origins)
        client_context(settings.tls_ca)
        tls = server_context(settings.tls_cert, settings.tls_key)
        prefork.serve(argv, settings.host, settings.port, settings.processes, scheme(tls))
    else:
        from kodolly.api.app import run  # the parent needs none of it

        run(settings, listener)
    return 0
