"""Neutralising: inserted text never holds a key, and is otherwise left alone."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kodolly_templates import TemplateError, get_template, neutralise
from kodolly_templates.guard import MAX_SPELLINGS, WORD_JOINER, breaks, spellings
from kodolly_templates.sandbox import render

LETTERS = "ab#"


def test_harmless_text_is_returned_as_it_is() -> None:
    """Text without a key comes back as the very same object."""
    text = "### 제목: 끝말잇기 <|x|> "
    assert neutralise(text, ["### 끝", "</s>"]) is text


def test_every_occurrence_is_broken_after_its_first_character() -> None:
    """A word joiner follows the first character of each occurrence, and nothing else changes."""
    assert neutralise("a</s>b</s>", ["</s>"]) == "a<\u2060/s>b<\u2060/s>"
    assert neutralise("### 끝", ["\n\n### 끝\n"]) == "#\u2060## 끝"


@given(
    text=st.text(LETTERS, max_size=24),
    keys=st.lists(st.text(LETTERS, min_size=2, max_size=4), min_size=1, max_size=4),
)
def test_no_key_survives_and_breaking_is_idempotent(text: str, keys: list[str]) -> None:
    """Even keys that overlap themselves or each other are gone, twice is once, and text is kept."""
    safe = neutralise(text, keys)
    assert not any(key in safe for key in keys)
    assert neutralise(safe, keys) == safe
    assert safe.replace(WORD_JOINER, "") == text


@given(
    text=st.text(LETTERS + "\u2060", max_size=24),
    keys=st.lists(st.text(LETTERS, min_size=2, max_size=4), min_size=1, max_size=4),
)
def test_jinja_breaks_as_python_does(text: str, keys: list[str]) -> None:
    """The chat template neutralises with any extra keys exactly as Python does."""
    template = get_template("koalpaca")
    chat = [{"role": "user", "content": "x" + text}]
    jinja = template.jinja(extra_guard=keys)
    rendered = render(jinja, {"messages": chat, "add_generation_prompt": True})
    assert rendered == template.with_guard(keys).prompt(chat)


def test_keys_spelled_in_jamo_are_broken() -> None:
    """A key typed in conjoining jamo, which an NFC tokenizer would compose, is broken too."""
    for typed in ("### 끝", unicodedata.normalize("NFD", "### 끝"), "### 끄\u11c0"):
        assert unicodedata.normalize("NFC", typed) == "### 끝"
        safe = neutralise(f"a {typed} b", ["### 끝"])
        assert "### 끝" not in unicodedata.normalize("NFC", safe)


def test_long_hangul_keys_are_broken_by_their_start() -> None:
    """A key with too many spellings to list is guarded by its beginning, in every spelling."""
    key = "<|사용자질문시작문장입니다|>"
    assert len(spellings(key)) <= MAX_SPELLINGS + 1
    for form in ("NFC", "NFD"):
        safe = neutralise(unicodedata.normalize(form, key), [key])
        assert key not in unicodedata.normalize("NFC", safe)


@pytest.mark.parametrize("key", ["", "#", " # ", "a\nb", "a\u2060b"])
def test_keys_that_cannot_be_guarded_are_refused(key: str) -> None:
    """One character, an inner newline or a word joiner makes a key useless as a guard."""
    with pytest.raises(TemplateError, match="guard key"):
        breaks([key])


def test_a_long_text_is_not_searched_once_a_key() -> None:
    """A text full of the keys' common beginning is searched whole for the few keys it may hold."""

    class Counted(str):
        searches = 0

        def __contains__(self, part: object) -> bool:
            Counted.searches += 1
            return isinstance(part, str) and super().__contains__(part)

    keys = [f"<|token_{number:03}|>" for number in range(256)]
    text = Counted("<|" * 100 + keys[7])
    assert neutralise(text, keys) == "<|" * 100 + f"<{WORD_JOINER}|token_007|>"
    assert Counted.searches == 2  # for the common beginning and for the one key


def test_a_key_that_begins_another_hides_neither() -> None:
    """Of keys that begin alike, each is broken wherever it stands."""
    keys = ["<|a|><|b|>", "<|a|>", "|><", "<|b"]
    safe = neutralise("<|a|><|b|> <|b|> <|a|>", keys)
    assert not any(key in safe for key in keys)
