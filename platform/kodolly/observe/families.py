"""Metrics as families of samples: summed over processes, and written in Prometheus' text format.

A sample's key is the line's own beginning, such as `kodolly_requests_total{model="m",outcome="ok"}`, so
that adding two processes' metrics needs to know nothing about them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["counter", "gauge", "histogram"]
Merge = Literal["sum", "max", "min"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass
class Family:
    """All samples of one metric. `merge`: how those of several processes become one."""

    name: str
    kind: Kind
    help: str
    merge: Merge = "sum"
    samples: dict[str, float] = field(default_factory=dict)

    def set(self, value: float, suffix: str = "", **labels: str) -> Family:
        """Gives one sample its value. `suffix`: such as `_count`, behind the name."""
        number = int(value) if isinstance(value, bool) else value
        self.samples[f"{self.name}{suffix}{label_text(labels)}"] = number
        return self

    def add(self, other: Mapping[str, float]) -> None:
        """Takes the samples of another process."""
        mine = self.samples
        for key, value in other.items():
            if key not in mine:
                mine[key] = value
            elif self.merge == "sum":
                mine[key] += value
            else:
                mine[key] = (max if self.merge == "max" else min)(mine[key], value)

    def as_row(self) -> list[Any]:
        """The same as JSON can hold it."""
        return [self.name, self.kind, self.help, self.merge, self.samples]


def label_text(labels: Mapping[str, str]) -> str:
    """Labels in braces; nothing for none."""
    if not labels:
        return ""
    return "{" + ",".join(f'{n}="{v.translate(_ESCAPES)}"' for n, v in labels.items()) + "}"


def of_rows(rows: Iterable[list[Any]]) -> list[Family]:
    """Families that `as_row` has turned into JSON."""
    return [Family(*row) for row in rows]


def merged(processes: Iterable[Iterable[Family]]) -> list[Family]:
    """The families of several processes as those of one, in the order of the first that has each."""
    result: dict[str, Family] = {}
    for families in processes:
        for each in families:
            if each.name not in result:
                result[each.name] = Family(each.name, each.kind, each.help, each.merge)
            result[each.name].add(each.samples)
    return list(result.values())


def text(families: Iterable[Family]) -> str:
    """Prometheus' text format, version 0.0.4."""
    lines: list[str] = []
    for each in families:
        lines.append(f"# HELP {each.name} {each.help}")
        lines.append(f"# TYPE {each.name} {each.kind}")
        lines += [f"{key} {value!r}" for key, value in each.samples.items()]
    return "\n".join(lines) + "\n"
