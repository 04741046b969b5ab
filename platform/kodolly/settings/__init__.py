"""All settings, one class for each process. options.py says where the values come from."""

from kodolly.settings.api import ApiSettings
from kodolly.settings.common import (
    API_PORT,
    CONTROLLER_PORT,
    EMBEDDED_MODEL,
    ENGINE_PORT,
    LOCAL,
    WEB_PORT,
    WORKER_PORT,
    CommonSettings,
    HttpSettings,
)
from kodolly.settings.controller import ControllerSettings
from kodolly.settings.doors import require_keys, require_token
from kodolly.settings.loading import (
    OTHER_SECRETS,
    SECTIONS,
    foreign_secrets,
    is_foreign_to_engines,
    load,
    load_with_sources,
)
from kodolly.settings.store import NO_STORE, STORE_FILE, StoreSettings
from kodolly.settings.top import TopSettings
from kodolly.settings.up import UpSettings
from kodolly.settings.web import WebSettings
from kodolly.settings.worker import WorkerSettings

__all__ = [
    "API_PORT",
    "CONTROLLER_PORT",
    "EMBEDDED_MODEL",
    "ENGINE_PORT",
    "LOCAL",
    "NO_STORE",
    "OTHER_SECRETS",
    "SECTIONS",
    "STORE_FILE",
    "WEB_PORT",
    "WORKER_PORT",
    "ApiSettings",
    "CommonSettings",
    "ControllerSettings",
    "HttpSettings",
    "StoreSettings",
    "TopSettings",
    "UpSettings",
    "WebSettings",
    "WorkerSettings",
    "foreign_secrets",
    "is_foreign_to_engines",
    "load",
    "load_with_sources",
    "require_keys",
    "require_token",
]
