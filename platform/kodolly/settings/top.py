"""The settings of `kodolly top`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kodolly.options import option
from kodolly.settings.common import API_PORT, CONTROLLER_PORT, LOCAL, CommonSettings


@dataclass(frozen=True)
class TopSettings(CommonSettings):
    """`kodolly top`."""

    section: ClassVar[str] = "top"

    controller: str = option(f"http://{LOCAL}:{CONTROLLER_PORT}", "the controller's URL")
    api: str = option(f"http://{LOCAL}:{API_PORT}", "the API's URL")
    interval: float = option(2.0, "seconds between two looks", minimum=0.2, maximum=3600)
    once: bool = option(False, "print one table and end")
