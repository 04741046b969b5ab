"""LoRA adapters served together with their base model: `--adapters`, and the template they share."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import kodolly_templates
from kodolly.engines.lora import MERGE, LoraAdapter, read_adapter
from kodolly.engines.model_files import read_object
from kodolly.errors import SettingsError
from kodolly.worker.card import CARD
from kodolly.worker.model import ChatTemplate, ServedModel, named_template
from kodolly_templates import Template, TemplateError, TokenizerTemplate
from kodolly_templates.directory import named_tokens

log = logging.getLogger(__name__)

NAME = re.compile(r"\w[\w.:/-]{0,127}")
TOKENIZER = "tokenizer.json"
GENERATION, CONFIG = "generation_config.json", "config.json"
OWN_TEMPLATE = "tokenizer"  # a model card's word for the chat template in its own directory


def read_adapters(specs: Sequence[str], engine: str, base: str) -> tuple[LoraAdapter, ...]:
    """The adapters in `specs` (`NAME=DIR` each), checked against the base model's directory.

    Raises SettingsError for an engine without adapters, a spec of another form, a repeated name,
    or an adapter that does not fit this base.
    """
    if not specs:
        return ()
    if engine == "openai":
        raise SettingsError(
            "--adapters: a server that already runs loads its own; name one of them with --model-name"
        )
    if engine != "vllm":
        raise SettingsError(
            f"--adapters: the {engine} engine serves no adapters: use --engine vllm, or {MERGE}"
        )
    adapters: list[LoraAdapter] = []
    for spec in specs:
        name, equals, directory = spec.partition("=")
        if not equals or not directory or not NAME.fullmatch(name):
            raise SettingsError(f"--adapters: NAME=DIR is expected, not {spec!r}")
        if name in (adapter.name for adapter in adapters):
            raise SettingsError(f"--adapters: the name {name!r} comes twice")
        adapters.append(read_adapter(name, Path(directory).expanduser(), Path(base)))
    return tuple(adapters)


def with_adapters(
    model: ServedModel, adapters: tuple[LoraAdapter, ...], *, template_is_chosen: bool
) -> ServedModel:
    """The base model with its adapters, and the one chat template that they all use.

    `template_is_chosen`: the operator named a template, which is then used for all. Raises
    SettingsError when an adapter has the base's name, when its tokenizer has tokens that the base's
    lacks, when its answers end with another token, or when its template differs: an engine has only
    one tokenizer and one template.
    """
    if model.name in (adapter.name for adapter in adapters):
        raise SettingsError(f"--adapters: {model.name!r} is the base's own name")
    for adapter in adapters:
        _refuse_new_tokens(adapter, model)
        _refuse_another_end(adapter, model)
    template = _shared_template(model, adapters, template_is_chosen)
    return replace(model, adapters=adapters, template=template)


def _refuse_new_tokens(adapter: LoraAdapter, model: ServedModel) -> None:
    """Raises SettingsError if the adapter was trained with tokens that the base does not have."""
    here, there = Path(adapter.path), Path(model.path)
    if not (here / TOKENIZER).is_file() or not (there / TOKENIZER).is_file():
        return
    try:
        base_tokens = kodolly_templates.special_tokens_of(there)
        new = [t for t in kodolly_templates.special_tokens_of(here) if t not in base_tokens]
    except TemplateError as error:
        raise SettingsError(f"--adapters: {adapter.name}: {error}") from error
    if new:
        raise SettingsError(
            f"--adapters: {adapter.name}: its tokenizer has tokens that the base's does not"
            f" ({', '.join(new)}), and an engine has one tokenizer: {MERGE}"
        )


def _refuse_another_end(adapter: LoraAdapter, model: ServedModel) -> None:
    """Raises SettingsError if the adapter ends its answers with a token at which the base goes on."""
    here, base = Path(adapter.path), Path(model.path)
    if not base.is_dir():
        return
    base_ends = _end_tokens(base / GENERATION) or _end_tokens(base / CONFIG)
    eos = named_tokens(base).get("eos_token")
    added = read_object(base / TOKENIZER).get("added_tokens") or []
    base_ends |= {token["id"] for token in added if token.get("content") == eos}
    other = _end_tokens(here / GENERATION) - base_ends
    if base_ends and other:
        raise SettingsError(
            f"--adapters: {adapter.name}: it ends its answers with token"
            f" {', '.join(map(str, sorted(other)))}, the base stops at"
            f" {', '.join(map(str, sorted(base_ends)))} only: correct the base's {GENERATION}, or {MERGE}"
        )


def _end_tokens(file: Path) -> set[int]:
    value = read_object(file).get("eos_token_id")
    return {token for token in (value if isinstance(value, list) else [value]) if token is not None}


def _shared_template(
    model: ServedModel, adapters: Sequence[LoraAdapter], chosen: bool
) -> ChatTemplate | None:
    shared, owner = model.template, model.name
    for adapter in adapters:
        own = _own_template(adapter, model)
        if own is None or (shared is not None and _source(own) == _source(shared)):
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
    """The template that the adapter's card names, else the one in its directory, else None."""
    directory, base = Path(adapter.path), Path(model.path)
    name = read_object(directory / CARD).get("template")
    if isinstance(name, str) and name and name != OWN_TEMPLATE:
        try:
            return kodolly_templates.load(base, name) if base.is_dir() else named_template(name)
        except (SettingsError, TemplateError) as error:
            raise SettingsError(f"--adapters: {directory / CARD}: {error}") from error
    try:
        return TokenizerTemplate.from_directory(directory)
    except TemplateError:
        return None


def _source(template: ChatTemplate) -> str:
    """Two templates are the same if this text is: a dialect's name, or the Jinja source."""
    return template.name if isinstance(template, Template) else template.source
