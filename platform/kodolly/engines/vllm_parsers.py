"""Which parsers vLLM is started with: they turn a model's own text into tool calls and reasoning.

vLLM chooses none by itself. The operator's setting comes first, then the model's card, then the table
`vllm_parsers.toml`, which knows model families by their config and their chat template.
"""

from __future__ import annotations

import ast
import logging
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from kodolly.errors import SettingsError

log = logging.getLogger(__name__)

NONE = "none"  # a setting's or a card's word for no parser
# Kind -> where vLLM lists the names of that kind: a file below its folder, and a dict in it.
REGISTRIES = {
    "tool": ("tool_parsers/__init__.py", "_TOOL_PARSERS_TO_REGISTER"),
    "reasoning": ("reasoning/__init__.py", "_REASONING_PARSERS_TO_REGISTER"),
}


@dataclass(frozen=True, slots=True)
class Parsers:
    """Names of vLLM's parsers; None: none. `chosen`: kinds that an operator or a card named."""

    tool: str | None = None
    reasoning: str | None = None
    chosen: frozenset[str] = frozenset()


NO_PARSERS = Parsers()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the table. Empty `model_types` fit every model."""

    parser: str
    model_types: tuple[str, ...]
    markers: tuple[str, ...]
    structural_tags: bool = False

    def fits(self, model_type: str | None, template: str) -> bool:
        """Whether it is for a model of this type with this chat template (Jinja's text)."""
        return (not self.model_types or model_type in self.model_types) and all(
            marker in template for marker in self.markers
        )


@cache
def table() -> Mapping[str, tuple[Entry, ...]]:
    """Kind -> entries, in the file's order."""
    text = files("kodolly.engines").joinpath("vllm_parsers.toml").read_text(encoding="utf-8")
    return {
        kind: tuple(
            Entry(
                each["parser"],
                tuple(each.get("model_types", ())),
                tuple(each.get("markers", ())),
                each.get("structural_tags", False),
            )
            for each in entries
        )
        for kind, entries in tomllib.loads(text).items()
    }


def choose(
    model_type: str | None,
    template: str | None,
    *,
    takes_tools: bool,
    named: Mapping[str, str | None],
) -> Parsers:
    """The parsers of a model.

    `model_type`: of its config.json. `template`: its own chat template, None without one.
    `takes_tools`: whether that has a place for tools. `named`: kind -> what an operator or a card says;
    `none` is for no parser, None leaves it to the table.
    """
    names: dict[str, str | None] = {}
    for kind, entries in table().items():
        if (own := named.get(kind)) is not None:
            names[kind] = None if own == NONE else own
        elif template is None or (kind == "tool" and not takes_tools):
            names[kind] = None
        else:
            fitting = (entry.parser for entry in entries if entry.fits(model_type, template))
            names[kind] = next(fitting, None)
    chosen = frozenset(kind for kind in names if named.get(kind) is not None)
    return Parsers(names["tool"], names["reasoning"], chosen)


def needs_structural_tags(parsers: Parsers) -> bool:
    """Whether calls that a model has to make need vLLM's grammar of the family's own form."""
    return any(entry.structural_tags for entry in table()["tool"] if entry.parser == parsers.tool)


def parser_flags(parsers: Parsers, root: str | None, extra_args: Sequence[str]) -> list[str]:
    """The flags for vLLM, whose folder is `root`. A flag that is in `extra_args` is left to the operator.

    Raises SettingsError for a chosen name that this vLLM does not have. One of the table is left out
    with a line in the log: another version of vLLM may lack it.
    """
    given = {word.partition("=")[0].replace("_", "-") for word in extra_args}
    tool = None if "--tool-call-parser" in given else _usable("tool", parsers, root)
    reasoning = None if "--reasoning-parser" in given else _usable("reasoning", parsers, root)
    flags = ["--enable-auto-tool-choice", "--tool-call-parser", tool] if tool else []
    return [*flags, *(("--reasoning-parser", reasoning) if reasoning else ())]


def installed(kind: str, root: str | None) -> list[str] | None:
    """Names of the parsers in the vLLM at `root`, read from its source; None if they are not there."""
    file, variable = REGISTRIES[kind]
    try:
        tree = ast.parse((Path(root or "") / file).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    for node in tree.body:
        if isinstance(node, ast.Assign) and _names(node.targets[0], variable):
            try:
                return sorted(ast.literal_eval(node.value))
            except (ValueError, TypeError):
                return None
    return None


def _names(target: Any, variable: str) -> bool:
    return isinstance(target, ast.Name) and target.id == variable


def _usable(kind: str, parsers: Parsers, root: str | None) -> str | None:
    name: str | None = getattr(parsers, kind)
    names = installed(kind, root)
    if name is None or names is None or name in names:
        return name
    if kind in parsers.chosen:
        raise SettingsError(
            f"--{kind}-parser: this vLLM has no {kind} parser {name!r}; it has {', '.join(names)}"
        )
    log.warning("this vLLM has no %s parser %s: the model's text is passed on as it is", kind, name)
    return None
