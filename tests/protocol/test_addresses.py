"""Base URLs: one spelling for one address, brackets where IPv6 needs them, and no other text at all."""

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kodolly.errors import SettingsError
from kodolly.protocol.addresses import AddressError, base_url, canonical_url
from kodolly.settings import ApiSettings, WorkerSettings

PIECES = st.sampled_from(
    [
        "http://",
        "HTTPS://",
        "a",
        "B.c",
        "127.0.0.1",
        "127.1",
        "0x7f.1",
        "[::1]",
        "[0:0::1]",
        "::1",
        ":",
        "80",
        ":443",
        ":99998",
        "/",
        "/v1",
        "@",
        "?",
        "#",
        "%",
        "\\",
        " ",
        "\n",
        "é",
        "-",
        "_",
    ]
)


@given(st.lists(PIECES, max_size=7).map("".join), st.booleans())
def test_the_canonical_form_is_its_own(text: str, with_path: bool) -> None:
    """It is stable, a client of ours can call it, and what has none raises AddressError alone."""
    try:
        url = canonical_url(text, with_path=with_path)
    except AddressError:
        return
    assert canonical_url(url, with_path=with_path) == url
    parsed = httpx.URL(url)
    assert parsed.scheme in ("http", "https")
    assert parsed.host
    assert not parsed.userinfo
    assert with_path or parsed.path == "/"


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("::1", "http://[::1]:1"), ("[::1]", "http://[::1]:1")],
)
def test_ipv6_in_brackets(host: str, url: str) -> None:
    """With or without them in the setting."""
    assert base_url(host, 1) == url


@pytest.mark.parametrize("kind", [WorkerSettings, ApiSettings])
def test_controllers_have_one_spelling(kind: type[WorkerSettings | ApiSettings]) -> None:
    """The same controller twice is noticed however it is spelled; IPv6 is one of them."""
    settings = kind(controller="http://A:21001/, http://[0::1]:21011")
    assert settings.controllers() == ("http://a:21001", "http://[::1]:21011")
    with pytest.raises(SettingsError, match="several different ones"):
        kind(controller="http://a:21001,http://A:21001/").controllers()
    assert kind(controller="http://u:s3cret@A:1").controllers() == ("http://u:s3cret@a:1",)


@pytest.mark.parametrize("bad", ["http://a:99998", "http://::1:21001", "http://", "a:21001"])
def test_a_bad_controller_is_named(bad: str) -> None:
    """By its flag and what is wrong with it."""
    with pytest.raises(
        SettingsError, match=r"--controller: .* is not of the form http://host:port"
    ):
        ApiSettings(controller=bad).controllers()


def test_no_secret_in_the_message() -> None:
    """A URL with a password is not repeated whole."""
    with pytest.raises(SettingsError) as caught:
        ApiSettings(controller="http://u:s3cret@a:99998").controllers()
    assert "s3cret" not in str(caught.value)
