"""Settings from flags, environment variables and a TOML file. The first source that has one wins.

A settings class is a frozen dataclass whose fields are made by `option()`. `resolve()` fills it, and
records the source of each value. `kodolly config` shows these sources, and an error names the flag,
the variable, or the file and line that is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
import shlex
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from kodolly.credentials import check_secret, require_filled
from kodolly.errors import SettingsError
from kodolly.toml_file import TomlFile, read_toml

DEFAULT_FILE = "kodolly.toml"
COMMON = "common"
_USER_INFO = re.compile(r"://[^/]*@")


def option(
    default: Any,
    help: str,  # noqa: A002 - argparse's own word
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    secret: bool = False,
    secret_file: bool = False,
    secret_url: bool = False,
    shell: bool = False,
) -> Any:
    """A dataclass field that is also a flag, an environment variable and a TOML key.

    `secret`: its value is never shown. `secret_file`: the name of a file with a secret. Both may be
    unset, but not empty: an empty secret would let everybody in. `secret_url`: a URL that may hold a
    password, which is not shown.

    A list is written as one text with commas between its items, also in each use of its flag. With
    `shell` the text is split as a shell does it, and each use of the flag is one item.
    """
    meta = {
        "help": help,
        "choices": tuple(choices),
        "minimum": minimum,
        "maximum": maximum,
        "secret": secret,
        "may_be_empty": not (secret or secret_file),
        "secret_url": secret_url,
        "shell": shell,
    }
    return dataclasses.field(default=default, metadata=meta)


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of every settings class. `section`: its TOML table and the prefix of its variables."""

    section: ClassVar[str] = COMMON


S = TypeVar("S", bound=Section)


@dataclasses.dataclass(frozen=True)
class Resolution(Generic[S]):
    """The settings of one command, and the source of each value."""

    settings: S
    sources: Mapping[str, str]
    file: Path | None = None  # the TOML file that was read

    def rows(self) -> list[tuple[str, str, str]]:
        """(flag, value, source) for every option, in order. Secrets are masked."""
        return [
            (_flag(f.name), self._shown(f), self.sources[f.name])
            for f in dataclasses.fields(self.settings)
        ]

    def _shown(self, f: dataclasses.Field[Any]) -> str:
        value = getattr(self.settings, f.name)
        if f.metadata["secret_url"] and value:
            return repr(without_password(value))
        return "********" if f.metadata["secret"] and value else repr(value)


@dataclasses.dataclass(frozen=True)
class _Raw:
    """A value as it was written, and where."""

    value: Any
    source: str


def resolve(
    cls: type[S],
    argv: Sequence[str],
    *,
    prog: str,
    description: str = "",
    sections: Sequence[type[Section]] = (),
    environ: Mapping[str, str] | None = None,
) -> Resolution[S]:
    """Fills `cls` for the command line `argv`.

    `sections`: if given, tables and keys in the file that none of these classes declare are errors.
    Raises SettingsError. For --help and unknown flags argparse ends the process.
    """
    environ = os.environ if environ is None else environ
    flags = _parser(cls, prog, description).parse_args(argv)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    table = _read_file(flags.config, environ)
    if sections:
        _check_file(table, sections)
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        raw = _first_source(cls, f, vars(flags), environ, table)
        if raw is None:
            values[f.name], sources[f.name] = f.default, "default"
        else:
            values[f.name], sources[f.name] = _convert(raw, hints[f.name], f), raw.source
    return Resolution(cls(**values), sources, table.path if table.path.exists() else None)


def section_of(cls: type[Section], name: str) -> str:
    """The TOML table of a field: that of the class which declares it."""
    for base in reversed(cls.__mro__):
        if name in getattr(base, "__annotations__", {}) and issubclass(base, Section):
            return base.section
    raise KeyError(name)


def environment_name(cls: type[Section], name: str) -> str:
    """A field's environment variable, such as KODOLLY_API_PORT, or KODOLLY_TOKEN for a common one."""
    section = section_of(cls, name)
    prefix = "" if section == COMMON else section.upper() + "_"
    return f"KODOLLY_{prefix}{name.upper()}"


def without_password(url: str) -> str:
    """A URL for people to read."""
    return _USER_INFO.sub("://***@", url)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _parser(cls: type[Section], prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The environment variable in brackets, or a key of the TOML file, sets the same option.\n"
        "The first of flag, variable and file wins; `kodolly config` shows where a value is from.",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"TOML file with settings (default: {DEFAULT_FILE}, if it exists)",
    )
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        default = "" if f.default in (None, "", ()) else f", default {f.default}"
        text = f"{f.metadata['help']} [{environment_name(cls, f.name)}{default}]".replace("%", "%%")
        kwargs: dict[str, Any] = {"help": text, "default": None, "dest": f.name}
        if hints[f.name] is bool:
            kwargs["action"] = argparse.BooleanOptionalAction
        elif typing.get_origin(hints[f.name]) is tuple:
            kwargs |= {"action": "append", "metavar": "TEXT"}
        else:
            kwargs["metavar"] = "|".join(f.metadata["choices"]) or _noun(hints[f.name])
        parser.add_argument(_flag(f.name), **kwargs)
    return parser


def _read_file(path: str | None, environ: Mapping[str, str]) -> TomlFile:
    named = path or environ.get("KODOLLY_CONFIG")
    file = Path(named or DEFAULT_FILE)
    if not named and not file.is_file():
        return TomlFile(file, {}, "")
    return read_toml(file, "--config" if path else "environment KODOLLY_CONFIG")


def _check_file(file: TomlFile, classes: Sequence[type[Section]]) -> None:
    keys: dict[str, set[str]] = {}
    for cls in classes:
        for f in dataclasses.fields(cls):
            keys.setdefault(section_of(cls, f.name), set()).add(f.name)
    for section, table in file.table.items():
        if section not in keys:
            raise SettingsError(
                f"{file.path}:{file.line_of(section)}: unknown table [{section}]; "
                f"the tables are {', '.join(sorted(keys))}"
            )
        if not isinstance(table, dict):
            raise SettingsError(
                f"{file.path}:{file.line_of(section)}: {section} must be a table: "
                f"write [{section}], and its keys below"
            )
        for key in table:
            if key.replace("-", "_") not in keys[section]:
                line = file.line_of(section, key)
                raise SettingsError(
                    f"{file.path}:{line}: unknown key {key!r} in [{section}]; "
                    "`kodolly config` lists the keys"
                )


def _first_source(
    cls: type[Section],
    f: dataclasses.Field[Any],
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    file: TomlFile,
) -> _Raw | None:
    name = f.name
    if flags[name] is not None:
        return _Raw(_of_flag(flags[name], f), f"flag {_flag(name)}")
    variable = environment_name(cls, name)
    # An empty variable counts as unset, since compose files write that. Not so for a secret.
    if environ.get(variable) or (variable in environ and not f.metadata["may_be_empty"]):
        return _Raw(environ[variable], f"environment {variable}")
    return _of_file(file, section_of(cls, name), name)


def _of_file(file: TomlFile, section: str, name: str) -> _Raw | None:
    table = file.table.get(section, {})
    for key in (name, name.replace("_", "-")):
        if key in table:
            return _Raw(table[key], f"{file.path}:{file.line_of(section, key)}")
    return None


def _of_flag(value: Any, f: dataclasses.Field[Any]) -> Any:
    """A flag's value in the form of its variable: a list's items with commas between them."""
    return ",".join(value) if isinstance(value, list) and not f.metadata["shell"] else value


def _convert(raw: _Raw, hint: Any, f: dataclasses.Field[Any]) -> Any:
    kind = _strip_none(hint)
    convert = _CONVERTERS[typing.get_origin(kind) or kind]
    if f.metadata["shell"]:
        convert = _to_arguments
    try:
        value = convert(raw.value)
    except (TypeError, ValueError, OverflowError):
        # `from None`: the cause's text has the value, which may be a secret.
        shown = "" if f.metadata["secret"] else f", not {raw.value!r}"
        raise SettingsError(
            f"{raw.source}: {f.name} must be {_VALUES.get(kind, 'a list of texts')}{shown}"
        ) from None
    _check(value, raw, f)
    return value


def _check(value: Any, raw: _Raw, f: dataclasses.Field[Any]) -> None:
    low, high, choices = (f.metadata[k] for k in ("minimum", "maximum", "choices"))
    if f.metadata["secret"]:
        check_secret(value, f"{raw.source}: {f.name}")
    elif not f.metadata["may_be_empty"]:
        require_filled(value, f"{raw.source}: {f.name}")
    shown = "" if f.metadata["secret"] else f", not {value}"
    if choices and value not in choices:
        raise SettingsError(f"{raw.source}: {f.name} must be one of {', '.join(choices)}{shown}")
    if low is not None and value < low:
        raise SettingsError(f"{raw.source}: {f.name} must be at least {low}{shown}")
    if high is not None and value > high:
        raise SettingsError(f"{raw.source}: {f.name} must be at most {high}{shown}")


def _strip_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return hint


def _noun(hint: Any) -> str:
    kind = _strip_none(hint)
    names = {int: "NUMBER", float: "NUMBER", bool: "true or false", str: "TEXT"}
    return names.get(kind, "LIST")


_VALUES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    if not isinstance(value, str) or value.lower() not in words:
        raise ValueError(value)
    return words[value.lower()]


def _to_number(kind: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError(value)
        number = kind(value)
        if not math.isfinite(number):  # the bounds below do not catch inf and nan
            raise ValueError(value)
        return number

    return convert


def _to_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _to_tuple(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(p, str) for p in parts):
        raise TypeError(value)
    return tuple(p.strip() for p in parts if p.strip())


def _to_arguments(value: Any) -> tuple[str, ...]:
    """Arguments of a command line. A list's items are not split further."""
    parts = shlex.split(value) if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(p, str) for p in parts):
        raise TypeError(value)
    return tuple(parts)


_CONVERTERS: Mapping[Any, Callable[[Any], Any]] = {
    str: _to_text,
    int: _to_number(int),
    float: _to_number(float),
    bool: _to_bool,
    tuple: _to_tuple,
}
