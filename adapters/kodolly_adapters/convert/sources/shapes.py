"""The sets in which a record is one question and its answer: all that differs is the names of columns (shapes.toml)."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from kodolly_adapters.errors import OptionError

from ..options import Options
from ..reading.licences import named
from ..reading.source import MAPPED, UNKNOWN, Drafts, Licence, Source
from ..schema import Draft, Rejection
from .common import set_category
from .dialogues import LICENCE as KOVICUNA_LICENCE

FIELDS = ("instruction", "context", "response", "category", "id")
Columns = Mapping[
    str, Sequence[str]
]  # the columns that each field may come from, the first goes before


def shape_sources() -> dict[str, Source]:
    """The sources of shapes.toml by name, in its order."""
    path = Path(__file__).with_name("shapes.toml")
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: _source(name, table.get(entry.get("like"), {}) | entry)
        for name, entry in table.items()
    }


def mapped_source(flags: Sequence[str]) -> Source:
    """The source of `--map FIELD=COLUMN,...`. Raises OptionError naming the wrong field."""
    columns: dict[str, tuple[str]] = {}
    for flag in flags:
        field = ""
        for part in flag.split(","):
            name, equals, column = part.partition("=")
            if not equals and field:  # a comma of the column's own name
                columns[field] = (f"{columns[field][0]},{part}",)
                continue
            field = name.strip()
            if field not in FIELDS or not column:
                raise OptionError(
                    f"--map {flag}: write FIELD=COLUMN, FIELD one of {', '.join(FIELDS)}; not {part}"
                )
            if field in columns:
                raise OptionError(f"--map {flag}: {field} is set twice")
            columns[field] = (column.strip(),)
    if missing := [field for field in ("instruction", "response") if field not in columns]:
        raise OptionError(f"--map: say which column is the {' and which the '.join(missing)}")
    source = _flat(MAPPED, "Columns named with --map", columns)
    names = frozenset(name for (name,) in columns.values())
    return replace(source, looks_like=names.issubset)


def _source(name: str, entry: Mapping[str, Any]) -> Source:
    columns = {field: tuple(entry[field]) for field in FIELDS if field in entry}
    files = tuple(entry.get("files", ()))
    return _flat(
        name,
        entry["title"],
        columns,
        without=frozenset(entry.get("without", ())),
        licence=_licence(entry) if files else UNKNOWN,
        patterns=files,
        by_name="like" in entry,
    )


def _flat(
    name: str, title: str, columns: Columns, without: frozenset[str] = frozenset(), **more: Any
) -> Source:
    keys = frozenset(column for names in columns.values() for column in names)
    return Source(
        name=name,
        title=title,
        record=dict[str, Any],
        first_keys=keys,
        looks_like=partial(_has_columns, columns, without),
        drafts=partial(flat_drafts, columns),
        columns=columns,
        **more,
    )


def _licence(entry: Mapping[str, Any]) -> Licence:
    if entry["licence"] == "kovicuna":
        return KOVICUNA_LICENCE
    terms = {name: entry[name] for name in ("url", "consequence") if name in entry}
    return msgspec.structs.replace(named(entry["licence"]), **terms)


def _has_columns(columns: Columns, without: frozenset[str], record: Mapping[str, Any]) -> bool:
    """Has the record a column for the instruction and one for the response?"""
    has = [any(name in record for name in columns[field]) for field in ("instruction", "response")]
    return all(has) and not without & record.keys()


def flat_drafts(columns: Columns, record: Mapping[str, Any], options: Options) -> Drafts:
    """One row a record. An answer that is an object, a list or a number becomes JSON text, which is noted."""
    value = {field: _value(record, names) for field, names in columns.items()}
    question, context, answer = value["instruction"], value.get("context", ""), value["response"]
    id_ = "" if value.get("id") is None else str(value["id"])
    if not isinstance(question, str):
        yield _no_text("instruction", question, columns, id_)
    elif not isinstance(context, str) and context is not None:
        yield _no_text("context", context, columns, id_)
    elif not isinstance(answer, str) and answer in (None, [], {}):
        names = " or ".join(columns["response"])
        yield Rejection("no-output", f"the record has no {names}", id_)
    else:
        row = Draft(question, context or "", answer, id=id_)
        if not isinstance(answer, str):
            row.response, row.notes = json.dumps(answer, ensure_ascii=False), ("json-answer",)
        if "category" in columns:
            set_category(row, value["category"])
        yield row


def _value(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of the columns that has one."""
    for name in names:
        value = record.get(name)
        if value is not None:
            return value
    return None


def _no_text(field: str, value: Any, columns: Columns, id_: str) -> Rejection:
    names = " or ".join(columns[field])
    if value is None:
        return Rejection("no-instruction", f"the record has no {names}", id_)
    return Rejection("wrong-shape", f"its {names} is no text, but {type(value).__name__}", id_)
