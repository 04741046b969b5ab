"""Words of the page."""

import string

import pytest

from kodolly.web.texts import EN, KO, language_of, say


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_both_languages_say_the_same_things() -> None:
    """Every sentence exists in Korean and English and takes the same fields."""
    assert KO.keys() == EN.keys()
    assert all(fields(KO[key]) == fields(EN[key]) for key in KO)


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("ko-KR,ko;q=0.9,en-US;q=0.8,en;q=0.7", "ko"),
        ("en-US,en;q=0.9,ko;q=0.8", "en"),
        ("en;q=0.3, ko;q=0.9", "ko"),
        ("ja-JP,ja;q=0.9,en;q=0.5", "en"),
        ("fr", "ko"),
        ("en;q=nonsense", "ko"),
        ("", "ko"),
        (None, "ko"),
    ],
)
def test_language_of_a_request(header: str | None, language: str) -> None:
    """The better liked of the two languages wins; Korean stands in for any other."""
    assert language_of(header) == language


def test_fields_are_filled_in() -> None:
    """A model's name appears in the sentence that speaks of it."""
    assert "polyglot" in say("ko", "model_gone", model="polyglot")
