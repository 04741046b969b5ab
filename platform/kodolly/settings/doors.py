"""Processes that other machines reach need a token or keys, or are opened by name."""

from __future__ import annotations

from kodolly import exposure
from kodolly.options import environment_name
from kodolly.settings.api import ApiSettings
from kodolly.settings.controller import ControllerSettings
from kodolly.settings.worker import WorkerSettings


def require_token(settings: ControllerSettings | WorkerSettings, host: str) -> str | None:
    """The shared secret. Raises SettingsError if there is none but other machines can reach `host`."""
    token = settings.secret()
    if token is None:
        variable = environment_name(type(settings), "open")
        exposure.require_token(host, is_open=settings.open, variable=variable)
    return token


def require_keys(settings: ApiSettings) -> None:
    """Raises SettingsError for an API that others reach and that has neither a key nor `--open`."""
    if not settings.keys():
        exposure.require_client_keys(
            settings.host,
            settings.published_address,
            is_open=settings.open,
            variable=environment_name(ApiSettings, "open"),
        )
