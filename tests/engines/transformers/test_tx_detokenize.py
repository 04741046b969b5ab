"""Incremental text: whole characters only, and no piece of a stop string."""

from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import tiny_tokenizer

from kodolly.engines.transformers.detokenize import Detokenizer
from kodolly.stop_strings import StopFinder

TOKENIZER = tiny_tokenizer()
KOREAN = st.text(
    st.one_of(
        st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3),
        st.sampled_from("🙂👩‍👩‍👧 \nabcㄱㅏ뷁"),
    ),
    max_size=24,
)


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


@settings(deadline=None)  # a loaded machine is no failure
@given(KOREAN)
def test_pieces_are_the_whole_and_never_split_a_character(text: str) -> None:
    """Pieces of any Korean text concatenate to it, and none holds U+FFFD."""
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(token) for token in TOKENIZER.encode(text)]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


@settings(deadline=None)  # a loaded machine is no failure
@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40))
def test_any_tokens_decode_as_the_whole_does(ids: list[int]) -> None:
    """Also for tokens that are no text, the pieces are what decoding all at once gives."""
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == decode(ids)


def test_a_rare_syllable_is_held_until_its_last_byte() -> None:
    """A syllable of several tokens comes with the last of them."""
    ids = TOKENIZER.encode("뷁")
    assert len(ids) > 1
    detokenizer = Detokenizer(decode)
    assert [detokenizer.push(token) for token in ids] == [""] * (len(ids) - 1) + ["뷁"]


def test_half_a_character_at_the_end_is_flushed() -> None:
    """An answer that ends inside a character shows U+FFFD once, at the end."""
    detokenizer = Detokenizer(decode)
    assert detokenizer.push(TOKENIZER.encode("뷁")[0]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@settings(deadline=None)  # a loaded machine is no failure
@given(KOREAN)
def test_a_length_cut_ends_with_a_whole_character(text: str) -> None:
    """Cut after any token, the text is a beginning of the whole text."""
    ids = TOKENIZER.encode(text)
    for length in range(len(ids) + 1):
        detokenizer = Detokenizer(decode)
        cut = "".join(detokenizer.push(token) for token in ids[:length])
        cut += detokenizer.flush(cut=True)
        assert text.startswith(cut)


@settings(deadline=None)  # a loaded machine is no failure
@given(st.text("ab#", max_size=20), st.lists(st.text("ab#", min_size=1, max_size=4), max_size=3))
def test_stops_cut_where_the_whole_text_would_be_cut(text: str, stops: list[str]) -> None:
    """Fed one character at a time, the text ends before the stop string that completes first."""
    finder = StopFinder(stops)
    sent, stopped = "", False
    for end, character in enumerate(text, 1):
        piece, stop = finder.push(character)
        sent += piece
        done = [each for each in stops if text[:end].endswith(each)]
        assert (stop is not None) == bool(done)
        if stop is not None:
            assert sent + stop == text[:end]
            stopped = True
            break
    if not stopped:
        assert sent + finder.flush() == text


def test_the_beginning_of_a_stop_string_is_held_back() -> None:
    """Text that may become a stop string is not sent before it is settled."""
    finder = StopFinder(["### 명령어:"])
    assert finder.push("답입니다.\n###") == ("답입니다.\n", None)
    assert finder.push(" 명") == ("", None)
    assert finder.push("함") == ("### 명함", None)


def test_an_included_stop_string_stays() -> None:
    """include leaves the stop string at the end of the text."""
    assert StopFinder(["끝"], include=True).push("이제 끝났다") == ("이제 끝", "끝")
