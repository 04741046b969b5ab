"""Settings of one process from flags, environment and file, and the secrets that it has no use for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeVar

from kodolly.logs import configure
from kodolly.options import Resolution, environment_name, resolve
from kodolly.settings.api import ApiSettings
from kodolly.settings.common import CommonSettings
from kodolly.settings.controller import ControllerSettings
from kodolly.settings.top import TopSettings
from kodolly.settings.up import UpSettings
from kodolly.settings.web import WebSettings
from kodolly.settings.worker import WorkerSettings

SECTIONS: tuple[type[CommonSettings], ...] = (
    ControllerSettings,
    WorkerSettings,
    ApiSettings,
    WebSettings,
    UpSettings,
    TopSettings,
)


C = TypeVar("C", bound=CommonSettings)


def load(cls: type[C], argv: Sequence[str], description: str, name: str = "") -> C:
    """The settings of one process. Also sets up logging by them. Raises SettingsError.

    `name`: the command's name where it is not that of the section.
    """
    return load_with_sources(cls, argv, description, name).settings


def load_with_sources(
    cls: type[C], argv: Sequence[str], description: str, name: str = ""
) -> Resolution[C]:
    """Like `load`, with the source of each setting."""
    prog = f"kodolly {name or cls.section}"
    resolved = resolve(cls, argv, prog=prog, description=description, sections=SECTIONS)
    configure(resolved.settings.log_level, resolved.settings.log_format)
    if not cls.uses_token:  # a settings file that all processes share may hold it
        settings = replace(resolved.settings, token=None, token_file=None)
        resolved = replace(resolved, settings=settings)
    return resolved


HUB_SECRETS = frozenset({"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"})
# Secrets that an operator may have in the environment for other programs.
OTHER_SECRETS = HUB_SECRETS | {"OPENAI_API_KEY", "VLLM_API_KEY"}


def foreign_secrets(cls: type[CommonSettings]) -> frozenset[str]:
    """The environment variables with secrets that a process with these settings has no use for."""
    own = {environment_name(cls, f.name) for f in fields(cls)}
    if not cls.uses_token:
        own -= {environment_name(CommonSettings, name) for name in ("token", "token_file")}
    secrets = {
        environment_name(section, f.name)
        for section in SECTIONS
        for f in fields(section)
        if f.metadata["secret_url"] or not f.metadata["may_be_empty"]
    }
    others = OTHER_SECRETS - HUB_SECRETS if cls.uses_hub else OTHER_SECRETS
    return frozenset((secrets - own) | others)


def is_foreign_to_engines(variable: str) -> bool:
    """Whether an engine has no use for an environment variable: ours, and other programs' secrets."""
    return variable.startswith("KODOLLY_") or variable in OTHER_SECRETS - HUB_SECRETS
