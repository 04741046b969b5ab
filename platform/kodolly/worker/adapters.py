"""Adapters served beside their base: what `--adapters` names, and the one template of them all."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import kodolly_templates
from kodolly.engines.lora import MERGE, LoraAdapter, read_adapter
from kodolly.errors import SettingsError
from kodolly.worker.model import CARD, ChatTemplate, ServedModel, named_template, read_object
from kodolly_templates import Template, TemplateError, TokenizerTemplate
from kodolly_templates.directory import named_tokens

log = logging.getLogger(__name__)

NAME = re.compile(r"\w[\w.:/-]{0,127}")
TOKENIZER = "tokenizer.json"
GENERATION, CONFIG = "generation_config.json", "config.json"
OWN = "tokenizer"  # what a card says of a chat template beside it


def read_adapters(named: Sequence[str], engine: str, base: str) -> tuple[LoraAdapter, ...]:
    """The adapters of `NAME=DIR` texts, checked against the base's directory.

    Raises SettingsError for an engine that adds none, a text of another form, a name that comes
    twice, or an adapter that cannot be added to this base.
    """
    if not named:
        return ()
    if engine == "openai":
        raise SettingsError(
            "--adapters: a server that already runs loads its own; name one of them with --model-name"
        )
    if engine != "vllm":
        raise SettingsError(
            f"--adapters: the {engine} engine adds none at run time: use --engine vllm, or {MERGE}"
        )
    found: list[LoraAdapter] = []
    for text in named:
        name, equals, directory = text.partition("=")
        if not equals or not directory or not NAME.fullmatch(name):
            raise SettingsError(f"--adapters: NAME=DIR is expected, not {text!r}")
        if name in (adapter.name for adapter in found):
            raise SettingsError(f"--adapters: the name {name!r} comes twice")
        found.append(read_adapter(name, Path(directory).expanduser(), Path(base)))
    return tuple(found)


def with_adapters(
    model: ServedModel, adapters: tuple[LoraAdapter, ...], *, template_is_chosen: bool
) -> ServedModel:
    """The base with its adapters, under the chat template they share.

    `template_is_chosen`: the operator named the base's template, so it is used for all. Raises
    SettingsError for a name that the base has, an adapter whose tokenizer has tokens that the
    base's has not or whose answers end otherwise, and templates that differ: an engine has one.
    """
    if model.name in (adapter.name for adapter in adapters):
        raise SettingsError(f"--adapters: {model.name!r} is the base's own name")
    for adapter in adapters:
        _refuse_new_tokens(adapter, model)
        _refuse_another_end(adapter, model)
    template = _shared_template(model, adapters, template_is_chosen)
    return replace(model, adapters=adapters, template=template)


def _refuse_new_tokens(adapter: LoraAdapter, model: ServedModel) -> None:
    """Raises SettingsError if the prompts it was trained on cannot be made of the base's tokens."""
    here, there = Path(adapter.path), Path(model.path)
    if not (here / TOKENIZER).is_file() or not (there / TOKENIZER).is_file():
        return
    try:
        known = kodolly_templates.special_tokens_of(there)
        new = [t for t in kodolly_templates.special_tokens_of(here) if t not in known]
    except TemplateError as error:
        raise SettingsError(f"--adapters: {adapter.name}: {error}") from error
    if new:
        raise SettingsError(
            f"--adapters: {adapter.name}: its tokenizer has tokens that the base's does not"
            f" ({', '.join(new)}), and an engine has one tokenizer: {MERGE}"
        )


def _refuse_another_end(adapter: LoraAdapter, model: ServedModel) -> None:
    """Raises SettingsError if it ends its answers with a token at which the base does not stop."""
    here, base = Path(adapter.path), Path(model.path)
    if not base.is_dir():
        return
    known = _end_tokens(base / GENERATION) or _end_tokens(base / CONFIG)
    eos = named_tokens(base).get("eos_token")
    added = read_object(base / TOKENIZER).get("added_tokens") or []
    known |= {token["id"] for token in added if token.get("content") == eos}
    other = _end_tokens(here / GENERATION) - known
    if known and other:
        raise SettingsError(
            f"--adapters: {adapter.name}: it ends its answers with token"
            f" {', '.join(map(str, sorted(other)))}, the base stops at"
            f" {', '.join(map(str, sorted(known)))} only: correct the base's {GENERATION}, or {MERGE}"
        )


def _end_tokens(file: Path) -> set[int]:
    told = read_object(file).get("eos_token_id")
    return {token for token in (told if isinstance(told, list) else [told]) if token is not None}


def _shared_template(
    model: ServedModel, adapters: Sequence[LoraAdapter], chosen: bool
) -> ChatTemplate | None:
    shared, owner = model.template, model.name
    for adapter in adapters:
        own = _own_template(adapter, model)
        if own is None or (shared is not None and _words(own) == _words(shared)):
            continue
        if chosen:
            log.warning(
                "adapter %s was trained with the template %s; --conv-template wins",
                adapter.name,
                own.name,
            )
        elif shared is None:
            shared, owner = own, adapter.name
            log.info("the template of %s is used for the base and all adapters", owner)
        else:
            raise SettingsError(
                f"--adapters: {adapter.name} was trained with the template {own.name}, but {owner}"
                f" is served with {shared.name}, and an engine has one: choose one for all with"
                f" --conv-template, start another worker for {adapter.name}, or {MERGE}"
            )
    return shared


def _own_template(adapter: LoraAdapter, model: ServedModel) -> ChatTemplate | None:
    """What the adapter's card names, else the chat template beside it; None: it follows the base."""
    directory, base = Path(adapter.path), Path(model.path)
    name = read_object(directory / CARD).get("template")
    if isinstance(name, str) and name and name != OWN:
        try:
            return kodolly_templates.load(base, name) if base.is_dir() else named_template(name)
        except (SettingsError, TemplateError) as error:
            raise SettingsError(f"--adapters: {directory / CARD}: {error}") from error
    try:
        return TokenizerTemplate.from_directory(directory)
    except TemplateError:
        return None


def _words(template: ChatTemplate) -> str:
    """What makes two templates the same one."""
    return template.name if isinstance(template, Template) else template.source
