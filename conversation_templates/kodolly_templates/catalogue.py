"""Dialects by name, and the template that belongs to a model directory."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

from .definition import Template, parse_template
from .directory import bos_token_of, card_template, special_tokens_of
from .errors import TemplateError
from .tokenizer import TOKENIZER, TokenizerTemplate

SUFFIX = ".toml"


@cache
def list_templates() -> tuple[str, ...]:
    """The names of the dialects that ship with KoDolly, sorted."""
    entries = files(__package__).iterdir()
    return tuple(sorted(e.name[: -len(SUFFIX)] for e in entries if e.name.endswith(SUFFIX)))


@cache
def get_template(name: str) -> Template:
    """The dialect called `name`; TemplateError, listing the names, when there is none."""
    if name not in list_templates():
        known = ", ".join(list_templates())
        hint = "; `tokenizer` needs a model directory: use load()" if name == TOKENIZER else ""
        raise TemplateError(f"no template {name!r}; known: {known}{hint}")
    source = files(__package__).joinpath(name + SUFFIX).read_text(encoding="utf-8")
    template = parse_template(source, name + SUFFIX)
    if template.name != name:
        raise TemplateError(f"{name}{SUFFIX}: its name is {template.name!r}")
    return template


def load(model_dir: str | Path, override: str | None = None) -> Template | TokenizerTemplate:
    """The template of a model directory, with its tokenizer's special tokens guarded and its bos.

    Its name is `override`, else the model card's, else `tokenizer`, the model's own chat template.
    """
    directory = Path(model_dir)
    name = override or card_template(directory) or TOKENIZER
    if name == TOKENIZER:
        return TokenizerTemplate.from_directory(directory)
    template = replace(get_template(name), bos_token=bos_token_of(directory))
    return template.with_guard(special_tokens_of(directory))


def register_all() -> None:
    """Put every dialect into FastChat's registry, replacing entries of the same name."""
    from fastchat.conversation import register_conv_template

    for name in list_templates():
        register_conv_template(get_template(name).conversation(), override=True)
