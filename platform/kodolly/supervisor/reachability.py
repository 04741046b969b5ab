"""Whether `kodolly up` may let other machines in, asked before any process is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from kodolly import exposure
from kodolly.options import environment_name, resolve
from kodolly.settings import SECTIONS, ApiSettings, CommonSettings, UpSettings, WebSettings

S = TypeVar("S", bound=CommonSettings)


def check_exposure(settings: UpSettings, config: Path | None) -> None:
    """Raise SettingsError where --host lets others reach an API without keys, or a page, without --open.

    API and page would say it too, but only in their logs, again and again. `config` is the settings file.
    """
    variable = environment_name(UpSettings, "open")
    api = replace(_of_child(ApiSettings, config), host=settings.host)
    if not api.keys():
        exposure.require_client_keys(
            api.host, api.published_address, is_open=settings.open or api.open, variable=variable
        )
    if settings.web:
        web = _of_child(WebSettings, config)
        exposure.require_login(
            settings.host,
            web.published_address,
            is_open=settings.open or web.open,
            variable=variable,
        )


def _of_child(cls: type[S], config: Path | None) -> S:
    """What file and environment say to a process of `up`, flags aside."""
    flags = [] if config is None else ["--config", str(config)]
    return resolve(cls, flags, prog=f"kodolly {cls.section}", sections=SECTIONS).settings
