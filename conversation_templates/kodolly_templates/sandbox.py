"""Render a model's own chat template as transformers would, without importing it.

The environment follows transformers.utils.chat_template_utils (5.23): sandboxed and immutable, blocks
trimmed, loop controls, `raise_exception`, `strftime_now`, an unescaped `tojson` and the generation tag.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import TemplateError


class GenerationTag(Extension):
    """`{% generation %}` marks the text a model is trained on; in a prompt, its body is rendered as if unmarked."""

    tags = {"generation"}  # noqa: RUF012 - the name and form jinja2 asks for

    def parse(self, parser: Parser) -> Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body, lineno=lineno)


@lru_cache(maxsize=32)
def compile_template(source: str) -> jinja2.Template:
    """The compiled template; TemplateError when it is not valid Jinja."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise TemplateError(f"the chat template is not valid Jinja: {error}") from error


def render(source: str, variables: dict[str, Any]) -> str:
    """The text of the template; TemplateError with the template's own words when it refuses."""
    try:
        return compile_template(source).render(variables)
    except jinja2.TemplateError as error:
        raise TemplateError(f"the chat template refused: {error}") from error
    except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
        raise TemplateError(f"the chat template failed: {error!r}") from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
