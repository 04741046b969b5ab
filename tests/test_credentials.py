"""Keys and tokens that cannot be used are refused at the start, with the place they were set at."""

from pathlib import Path

import pytest

from kodolly.engines.transformers.__main__ import main as engine
from kodolly.errors import SettingsError
from kodolly.options import resolve
from kodolly.settings import ApiSettings, WebSettings, WorkerSettings

UNUSABLE = [
    "비밀",
    "sk-é",
    "two words",
    "tab\there",
    "line\nbreak",
    "nul\0",
    "del\x7f",
    "wide\u3000space",
]


@pytest.mark.parametrize("secret", UNUSABLE)
@pytest.mark.parametrize(
    ("settings", "name", "variable"),
    [
        (ApiSettings, "token", "KODOLLY_TOKEN"),
        (ApiSettings, "client_keys", "KODOLLY_API_CLIENT_KEYS"),
        (WorkerSettings, "engine_key", "KODOLLY_WORKER_ENGINE_KEY"),
        (WebSettings, "api_key", "KODOLLY_WEB_API_KEY"),
    ],
)
def test_a_secret_no_header_can_carry_is_refused_and_named(
    settings: type[ApiSettings], name: str, variable: str, secret: str, tmp_path: Path
) -> None:
    """From flag, variable or file: the message names setting and place, and not the secret."""
    file = tmp_path / "k.toml"
    quoted = "".join(f"\\u{ord(character):04x}" for character in secret)
    section = "common" if name == "token" else settings.section
    value = f'["{quoted}"]' if name == "client_keys" else f'"{quoted}"'
    file.write_text(f"# settings\n[{section}]\n{name} = {value}\n")
    flag = "--" + name.replace("_", "-")
    for argv, environ, place in (
        ([flag, secret], {}, f"flag {flag}"),
        ([], {variable: secret}, f"environment {variable}"),
        (["--config", str(file)], {}, f"{file}:3"),
    ):
        with pytest.raises(SettingsError) as refusal:
            resolve(settings, argv, prog="kodolly", environ=environ)
        assert str(refusal.value).startswith(f"{place}: {name} holds a space")
        assert secret not in str(refusal.value)


@pytest.mark.parametrize("secret", UNUSABLE[:3])
def test_one_bad_key_among_good_ones_is_refused(secret: str) -> None:
    """No key of a list is left out in silence."""
    with pytest.raises(SettingsError, match="client_keys holds"):
        resolve(ApiSettings, ["--client-keys", f"good,{secret}"], prog="api", environ={})


def test_comments_and_blank_lines_of_a_key_file_are_no_keys(tmp_path: Path) -> None:
    """Only lines with a key count, whatever editor wrote the file; nobody enters by a comment."""
    file = tmp_path / "keys"
    file.write_bytes("\ufeff# 팀의 열쇠\r\n\r\nsk-one\r\n  # sk-old\r\n sk-two \r\n".encode())

    assert ApiSettings(client_keys_file=str(file)).keys() == {"sk-one", "sk-two"}


@pytest.mark.parametrize("line", ["sk-one # alice", "비밀"])
def test_a_bad_line_of_a_key_file_is_named(line: str, tmp_path: Path) -> None:
    """A comment behind a key is neither cut off nor made part of the key."""
    file = tmp_path / "keys"
    file.write_text(f"# keys\nsk-zero\n{line}\n")

    with pytest.raises(SettingsError, match=rf"--client-keys-file: {file}:3 holds a space"):
        ApiSettings(client_keys_file=str(file)).keys()


@pytest.mark.parametrize("text", ["# nothing yet\n", "\n#one\n  #two\n"])
def test_a_file_of_comments_alone_is_an_error(text: str, tmp_path: Path) -> None:
    """A file without a key would otherwise leave the API open to everybody."""
    file = tmp_path / "keys"
    file.write_text(text)

    with pytest.raises(SettingsError, match="is empty"):
        ApiSettings(client_keys_file=str(file)).keys()
    with pytest.raises(SettingsError, match="is empty"):
        ApiSettings(token_file=str(file)).secret()


def test_a_token_file_holds_one_token(tmp_path: Path) -> None:
    """Of several lines nobody could say which one is meant."""
    file = tmp_path / "token"
    file.write_text("# renewed in March\nabc\n")
    assert ApiSettings(token_file=str(file)).secret() == "abc"

    file.write_text("abc\ndef\n")
    with pytest.raises(SettingsError, match="2 lines"):
        ApiSettings(token_file=str(file)).secret()


def test_the_engine_refuses_such_a_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Our engine's key comes by a variable, and is under the same rule."""
    monkeypatch.setenv("VLLM_API_KEY", "열쇠")
    monkeypatch.setattr("kodolly.logs.configure", lambda *_: None)

    assert engine(["--model", "nowhere"]) == 1
    assert "VLLM_API_KEY" in caplog.text
