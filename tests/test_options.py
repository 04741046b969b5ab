"""Where a setting comes from, and what a wrong one says."""

import traceback
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest

from kodolly.errors import SettingsError
from kodolly.options import Resolution, Section, environment_name, option, resolve
from kodolly.settings import (
    SECTIONS,
    ApiSettings,
    ControllerSettings,
    WorkerSettings,
    require_token,
)


@dataclass(frozen=True)
class Sample(Section):
    """A settings class with one field of each type."""

    section: ClassVar[str] = "sample"

    port: int = option(80, "a number", minimum=1, maximum=99)
    ratio: float = option(0.5, "a fraction")
    name: str | None = option(None, "a text")
    mode: str = option("a", "a choice", choices=("a", "b"))
    web: bool = option(True, "a switch")
    keys: tuple[str, ...] = option((), "texts", secret=True)
    pin: int = option(1, "a secret number", minimum=1, maximum=99, secret=True)
    args: tuple[str, ...] = option((), "a command line", shell=True)


def of(argv: list[str], environ: dict[str, str] | None = None) -> Resolution[Sample]:
    return resolve(Sample, argv, prog="sample", sections=(Sample,), environ=environ or {})


def test_defaults_hold_when_nothing_is_said() -> None:
    """Without flag, variable or file every option has its default, and says so."""
    result = of([])

    assert Sample() == result.settings
    assert {"default"} == set(result.sources.values())


def test_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    """The nearest source wins, and `sources` names it: the flag, the variable, the file's line."""
    file = tmp_path / "k.toml"
    file.write_text('# settings\n[sample]\nport = 3\nname = "file"\nmode = "b"\n')
    environ = {"KODOLLY_SAMPLE_PORT": "2", "KODOLLY_SAMPLE_NAME": "environment"}

    result = of(["--config", str(file), "--port", "1"], environ)

    assert (
        result.settings.port,
        result.settings.name,
        result.settings.mode,
    ) == (1, "environment", "b")
    assert result.sources["port"] == "flag --port"
    assert result.sources["name"] == "environment KODOLLY_SAMPLE_NAME"
    assert f"{file}:5" == result.sources["mode"]


@pytest.mark.parametrize(
    ("argv", "environ", "said"),
    [
        (["--port", "x"], {}, "flag --port: port must be a whole number, not 'x'"),
        (["--port", "0"], {}, "flag --port: port must be at least 1"),
        (["--port", "100"], {}, "at most 99"),
        (["--mode", "c"], {}, "mode must be one of a, b, not c"),
        ([], {"KODOLLY_SAMPLE_RATIO": "half"}, "environment KODOLLY_SAMPLE_RATIO: ratio must be"),
        (["--ratio", "inf"], {}, "flag --ratio: ratio must be a number, not 'inf'"),
        ([], {"KODOLLY_SAMPLE_RATIO": "nan"}, "ratio must be a number, not 'nan'"),
        ([], {"KODOLLY_SAMPLE_ARGS": "--a '"}, "args must be a list of texts"),
        ([], {"KODOLLY_SAMPLE_WEB": "perhaps"}, "web must be true or false"),
    ],
)
def test_a_wrong_value_names_its_source(
    argv: list[str], environ: dict[str, str], said: str
) -> None:
    """A value that cannot be used is refused with the flag or variable that holds it."""
    with pytest.raises(SettingsError, match=said):
        of(argv, environ)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sample]\nport = 'x'\n", r"k\.toml:2: port must be a whole number"),
        ("[sample]\n\nprot = 3\n", r"k\.toml:3: unknown key 'prot'"),
        ("[sample]\n[simple]\n", r"k\.toml:2: unknown table \[simple\]; the tables are sample"),
        ("[sample\n", r"k\.toml: .*line 1"),
        ("sample = 3\n", r"k\.toml:1: sample must be a table"),
    ],
)
def test_a_wrong_file_names_its_line(tmp_path: Path, text: str, said: str) -> None:
    """A fault in the settings file is told with the file and the line."""
    file = tmp_path / "k.toml"
    file.write_text(text)

    with pytest.raises(SettingsError, match=said):
        of(["--config", str(file)])


def test_a_missing_file_is_an_error_only_when_named(tmp_path: Path) -> None:
    """A file named by flag must be there; the default one need not."""
    with pytest.raises(SettingsError, match="--config: cannot read "):
        of(["--config", str(tmp_path / "none.toml")])


def test_lists_and_switches_are_read_from_everywhere(tmp_path: Path) -> None:
    """A list is comma-separated in a variable, repeated as a flag; --no-x turns a switch off."""
    assert of([], {"KODOLLY_SAMPLE_KEYS": "a, b"}).settings.keys == ("a", "b")
    assert of(["--keys", "a", "--keys", "b"]).settings.keys == ("a", "b")
    assert of(["--keys", "a, b", "--keys=c"]).settings.keys == ("a", "b", "c")
    assert not of(["--no-web"]).settings.web


def test_a_password_in_a_url_is_not_shown() -> None:
    """`kodolly config` shows where the store is, and no password; nor does an error."""
    url = "postgresql://me:geheim@host/db"
    rows = {row[0]: row[1] for row in resolve(ApiSettings, ["--store", url], prog="x").rows()}
    assert rows["--store"] == "'postgresql://***@host/db'"
    with pytest.raises(SettingsError) as caught:
        ApiSettings(store="mysql://me:geheim@host/db").store_url()
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("none", None),
        ("sqlite:///a/b.sqlite3", "sqlite:///a/b.sqlite3"),
        ("sqlite:////a b/가.sqlite3", "sqlite:////a b/가.sqlite3"),
        ("postgresql://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
        ("postgresql://u@/d?host=/run/pg", "postgresql://u@/d?host=/run/pg"),
    ],
)
def test_stores_that_can_be_named(value: str, url: str | None) -> None:
    """A file, a server, or none."""
    assert ApiSettings(store=value).store_url() == url


@pytest.mark.parametrize(
    "value",
    [
        *("", "store.sqlite3", "sqlite://", "sqlite:///", "sqlite://a/b", "sqlite:///f?mode=ro"),
        *("mysql://h/d", "postgresql://", "postgresql://h", "postgresql://h:x/d", "None"),
    ],
)
def test_anything_else_is_no_store(value: str) -> None:
    """The error names the flag and the forms that are right."""
    with pytest.raises(SettingsError, match=r"--store: .* is not a store: give sqlite:///FILE"):
        ApiSettings(store=value).store_url()


def test_secrets_are_masked() -> None:
    """`kodolly config` never shows a secret's value."""
    rows = {flag: value for flag, value, _ in of(["--keys", "s3cret"]).rows()}

    assert rows["--keys"] == "********"


@pytest.mark.parametrize("value", ["'s3cret'", "12345", "-12345"])
def test_a_wrong_secret_is_not_repeated(tmp_path: Path, value: str) -> None:
    """An error about a secret names its place, and nothing of the error holds its value."""
    file = tmp_path / "k.toml"
    file.write_text(f"[sample]\npin = {value}\n")

    with pytest.raises(SettingsError, match=r"k\.toml:2: pin must be") as caught:
        of(["--config", str(file)])

    assert value.strip("'") not in "".join(traceback.format_exception(caught.value))


def test_a_command_line_keeps_its_commas(tmp_path: Path) -> None:
    """Engine arguments: a variable is split as by a shell; a flag or list item stands as it is."""
    wanted = ("--n=2", '--json={"a": 1, "b": 2}')
    file = tmp_path / "k.toml"
    file.write_text(f"[sample]\nargs = ['{wanted[0]}', '{wanted[1]}']\n")

    assert of([], {"KODOLLY_SAMPLE_ARGS": f"--n=2 '{wanted[1]}'"}).settings.args == wanted
    assert of([f"--args={part}" for part in wanted]).settings.args == wanted
    assert of(["--config", str(file)]).settings.args == wanted


def test_a_worker_has_ports_others_can_be_told() -> None:
    """Port 0 would be advertised as it stands, so a worker and its engine refuse it."""
    for flag in ("--port", "--engine-port"):
        with pytest.raises(SettingsError, match=f"flag {flag}: .* at least 1"):
            resolve(WorkerSettings, [flag, "0"], prog="worker", environ={})


def test_empty_variables_count_as_unset() -> None:
    """Compose files pass unset variables as empty ones."""
    assert of([], {"KODOLLY_SAMPLE_PORT": ""}).settings.port == 80


def test_common_options_share_one_variable() -> None:
    """The token is KODOLLY_TOKEN for every process."""
    assert {"KODOLLY_TOKEN"} == {environment_name(cls, "token") for cls in SECTIONS}
    assert environment_name(ApiSettings, "port") == "KODOLLY_API_PORT"


def test_every_option_has_a_help_text() -> None:
    """Nothing can be set that --help does not explain."""
    for cls in SECTIONS:
        for f in fields(cls):
            assert f.metadata["help"], f"{cls.__name__}.{f.name}"


def test_an_open_address_needs_a_token(tmp_path: Path) -> None:
    """Off loopback nobody starts without the shared secret; a token file serves as well."""
    with pytest.raises(SettingsError, match="KODOLLY_TOKEN"):
        require_token(ControllerSettings(), "0.0.0.0")

    file = tmp_path / "token"
    file.write_text("secret\n")

    assert require_token(WorkerSettings(token_file=str(file)), "0.0.0.0") == "secret"
    assert require_token(ControllerSettings(), "127.0.0.1") is None


def test_client_keys_come_from_option_and_file(tmp_path: Path) -> None:
    """Keys of the option and of the file count alike; an empty file is an error, not an open door."""
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")

    assert {"one", "two", "three"} == ApiSettings(
        client_keys=("three",), client_keys_file=str(file)
    ).keys()
    file.write_text("\n")
    with pytest.raises(SettingsError, match="is empty"):
        ApiSettings(client_keys_file=str(file)).keys()


@pytest.mark.parametrize(
    ("argv", "environ", "toml"),
    [
        (["--token", ""], {}, ""),
        (["--token", "  "], {}, ""),
        (["--token-file", ""], {}, ""),
        (["--client-keys", ""], {}, ""),
        (["--client-keys", " , "], {}, ""),
        (["--client-keys-file", " "], {}, ""),
        ([], {"KODOLLY_TOKEN": ""}, ""),
        ([], {"KODOLLY_TOKEN_FILE": ""}, ""),
        ([], {"KODOLLY_API_CLIENT_KEYS": " , "}, ""),
        ([], {"KODOLLY_API_CLIENT_KEYS": ""}, ""),
        ([], {"KODOLLY_API_CLIENT_KEYS_FILE": ""}, ""),
        ([], {}, '[common]\ntoken = ""\n'),
        ([], {}, "[api]\nclient_keys = []\n"),
        ([], {}, '[api]\nclient_keys = [" "]\n'),
    ],
)
def test_an_empty_secret_is_refused_and_named(
    argv: list[str], environ: dict[str, str], toml: str, tmp_path: Path
) -> None:
    """Written anywhere, it is an error that names the place: never a lock that anybody opens."""
    file = tmp_path / "k.toml"
    file.write_text(toml)
    with pytest.raises(SettingsError, match="is empty") as refusal:
        resolve(ApiSettings, [*argv, "--config", str(file)], prog="api", environ=environ)
    place = argv[0] if argv else next(iter(environ), f"{file}:2")
    assert place in str(refusal.value)


@pytest.mark.parametrize("text", ["", "\n", "  \n\t\n"])
def test_a_file_without_a_secret_is_refused(text: str, tmp_path: Path) -> None:
    """An empty token file, or one of blank lines, opens nothing."""
    file = tmp_path / "secret"
    file.write_text(text)
    with pytest.raises(SettingsError, match="is empty"):
        ApiSettings(token_file=str(file)).secret()
    with pytest.raises(SettingsError, match="is empty"):
        ApiSettings(client_keys_file=str(file)).keys()


def test_every_secret_of_every_process_is_under_that_rule() -> None:
    """A new option that holds a secret, or names its file, cannot forget the rule."""
    for section in SECTIONS:
        for each in fields(section):
            names = ("token", "token_file", "tokens_file")
            looks_secret = (
                each.name.endswith(names)
                or each.name.startswith("client_keys")
                or (
                    # Without its certificate an empty tls_key is no TLS, and with it an error: test_tls.py
                    "key" in each.name and each.name != "tls_key"
                )
            )
            assert each.metadata["may_be_empty"] is not looks_secret, f"{section}: {each.name}"


def test_other_options_may_be_set_and_empty() -> None:
    """Compose files hand on variables that are set and empty: they count as not set."""
    assert of([], {"KODOLLY_SAMPLE_NAME": "", "KODOLLY_SAMPLE_PORT": ""}).settings == Sample()
