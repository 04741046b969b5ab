"""The one error of this room (this package sits below kodolly, so its errors cannot live there)."""

from __future__ import annotations


class TemplateError(ValueError):
    """A template definition, a model directory or a conversation cannot be used as it is."""
