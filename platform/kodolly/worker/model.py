"""What a worker must know of its model before the engine runs: names, template, stop and guard."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kodolly_templates
from kodolly.engines.lora import LoraAdapter
from kodolly.errors import SettingsError
from kodolly_templates import Template, TemplateError, TokenizerTemplate

log = logging.getLogger(__name__)

CARD = "model_card.json"

ChatTemplate = Template | TokenizerTemplate


@dataclass(frozen=True)
class ServedModel:
    """One model as it is served. `template` is None where nothing is known of its prompt.

    `adapters` are served beside it under names of their own, in the same template.
    """

    name: str
    path: str
    template: ChatTemplate | None
    special_tokens: tuple[str, ...] = ()
    adapters: tuple[LoraAdapter, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that may be asked for, the base's first."""
        return (self.name, *(adapter.name for adapter in self.adapters))

    @property
    def stop(self) -> list[str]:
        """Strings at which every answer of this model ends."""
        return list(self.template.stop) if self.template else []

    @property
    def guard(self) -> list[str]:
        """Strings a user must not be able to put into the prompt."""
        keys = self.template.guard if self.template else ()
        return list(dict.fromkeys([*keys, *self.special_tokens]))

    def write_chat_template(self, directory: Path) -> Path | None:
        """The template as a Jinja file for the engine; None if the model's own is used."""
        if isinstance(self.template, Template):
            source = self.template.jinja(extra_guard=self.special_tokens)
        elif self.template is not None and self.adapters:  # it may have come with one of them
            source = self.template.jinja()
        else:
            return None
        file = directory / f"{self.template.name}.jinja"
        file.write_text(source, encoding="utf-8")
        return file


def describe(model: str, name: str | None, conv_template: str | None) -> ServedModel:
    """Reads a model directory. Raises SettingsError when it cannot be served.

    A `model` that is no directory is left to the engine (a hub id): only `conv_template` is known.
    """
    path = Path(model)
    if not path.is_dir():
        if model.startswith((".", "/")):
            raise SettingsError(f"--model: no directory {model}")
        return ServedModel(name or model, model, named_template(conv_template))
    if not (path / "config.json").is_file():
        raise SettingsError(f"--model: {model} has no config.json; it is no model directory")
    card = read_object(path / CARD)
    return ServedModel(
        name or str(card.get("name") or path.resolve().name),
        str(path.resolve()),
        _template(path, conv_template),
        _special_tokens(path),
    )


def named_template(name: str | None) -> Template | None:
    """A dialect of ours by its name. Raises SettingsError for an unknown one."""
    if name is None:
        return None
    try:
        return kodolly_templates.get_template(name)
    except TemplateError as error:
        raise SettingsError(f"--conv-template: {error}") from error


def _special_tokens(path: Path) -> tuple[str, ...]:
    try:
        return tuple(kodolly_templates.special_tokens_of(path))
    except TemplateError as error:
        raise SettingsError(f"--model: {error}") from error


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file, {} when there is none. Raises SettingsError for anything else."""
    if not file.is_file():
        return {}
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SettingsError(f"{file}: {error}") from error
    if not isinstance(card, dict):
        raise SettingsError(f"{file}: a JSON object is expected")
    return card


def _template(path: Path, override: str | None) -> ChatTemplate | None:
    try:
        return kodolly_templates.load(path, override)
    except TemplateError as error:
        if override is not None:
            raise SettingsError(f"--conv-template: {error}") from error
        # A base model without a template still completes; chat will be refused by the engine.
        log.warning("%s: %s", path, error)
        return None
