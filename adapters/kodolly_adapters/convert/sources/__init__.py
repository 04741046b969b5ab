"""The sources KoDolly knows, in the order a file is tried against them; one module each."""

from __future__ import annotations

from ..source import Source
from .alpaca import ALPACA

SOURCES: tuple[Source, ...] = (ALPACA,)


def named(name: str) -> Source | None:
    """The source of that name, or None."""
    return next((source for source in SOURCES if source.name == name), None)
