"""The cleaning rules and their modes; the table itself is rules.toml.

Mode `off` does nothing, `count` counts and keeps, the others act. A rule counts once a row.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from kodolly_adapters.errors import OptionError

OFF, COUNT, FIX, DROP, JOIN, MASK = "off", "count", "fix", "drop", "join", "mask"


@dataclass(frozen=True, slots=True)
class Rule:
    """One switchable rule; `what` is its sentence in the help and on the data card."""

    name: str
    modes: tuple[str, ...]
    default: str
    what: str


@cache
def table(file: str) -> dict[str, Any]:
    """A TOML file of this folder, read once a process."""
    return tomllib.loads(Path(__file__).with_name(file).read_text(encoding="utf-8"))


@cache
def all_rules() -> Mapping[str, Rule]:
    """All rules by name, in the order of the data card."""
    return {
        name: Rule(name, tuple(fields["modes"]), fields["default"], fields["what"])
        for name, fields in table("rules.toml")["rules"].items()
    }


def all_reasons() -> Mapping[str, str]:
    """Why a piece of input becomes no row, and what sources note beside a row: a sentence each."""
    reasons: dict[str, str] = table("rules.toml")["reasons"]
    return reasons


def meaning(name: str) -> str:
    """The sentence of a rule or reason; "" for an unknown name."""
    rule = all_rules().get(name)
    return rule.what if rule else all_reasons().get(name, "")


def modes_of(
    chosen: Mapping[str, str], source_rules: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The mode of every rule: the user's choice, else the source's default, else the rule's.

    Raises OptionError naming the rule or mode that does not exist, and those that do.
    """
    modes = {rule.name: rule.default for rule in all_rules().values()}
    for name, mode in [*(source_rules or {}).items(), *chosen.items()]:
        rule = all_rules().get(name)
        if rule is None:
            raise OptionError(f"no rule {name!r}; there are {', '.join(all_rules())}")
        if mode not in rule.modes:
            raise OptionError(f"rule {name} has no mode {mode!r}; it has {', '.join(rule.modes)}")
        modes[name] = mode
    return modes
