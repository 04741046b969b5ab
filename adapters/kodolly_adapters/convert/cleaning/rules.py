"""The cleaning rules and their modes; the table itself is rules.toml.

Mode `off` does nothing, `count` only counts, the others also change or drop rows. A rule counts each row once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from kodolly_adapters.errors import OptionError

OFF, COUNT, FIX, DROP, JOIN, MASK = "off", "count", "fix", "drop", "join", "mask"


class Rule(NamedTuple):
    """One switchable rule; `what` is its sentence in the help and on the data card."""

    name: str
    modes: list[str]
    default: str
    what: str


@cache
def table(file: str) -> dict[str, Any]:
    """A TOML file of this folder, read once a process."""
    return tomllib.loads(Path(__file__).with_name(file).read_text(encoding="utf-8"))


@cache
def all_rules() -> Mapping[str, Rule]:
    """All rules by name, in the order of the data card."""
    return {name: Rule(name, **fields) for name, fields in table("rules.toml")["rules"].items()}


def meaning(name: str) -> str:
    """The sentence of a rule, or of a reason why input becomes no row; "" for an unknown name."""
    rule = all_rules().get(name)
    return rule.what if rule else table("rules.toml")["reasons"].get(name, "")


def modes_of(
    user_modes: Mapping[str, str], source_rules: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The mode of every rule: the user's choice, else the source's default, else the rule's.

    Raises OptionError naming the rule or mode that does not exist, and those that do.
    """
    rules = all_rules()
    defaults = {name: rule.default for name, rule in rules.items()}
    modes = {**defaults, **(source_rules or {}), **user_modes}
    for name, mode in modes.items():
        if name not in rules:
            raise OptionError(f"no rule {name!r}; there are {', '.join(rules)}")
        if mode not in rules[name].modes:
            available = ", ".join(rules[name].modes)
            raise OptionError(f"rule {name} has no mode {mode!r}; it has {available}")
    return modes
