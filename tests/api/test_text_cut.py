"""The text after a cut: a stop string ends it wherever it began."""

import pytest

from kodolly.api.resume.journal import Choice
from kodolly.api.resume.text_cut import TextAfterCut

STOP = "밤, ㅋ"


@pytest.mark.parametrize("sent", range(1, len(STOP)))
def test_a_stop_string_that_began_in_what_was_sent_still_ends_the_answer(sent: int) -> None:
    """An engine that holds nothing back has sent its beginning: no more than that goes out."""
    choice = Choice(0, parts=["꿈을 꾸는 ", STOP[:sent]])
    tail = TextAfterCut(choice, "", [STOP], include=False)
    assert tail.push(STOP[sent:] + "ㅋㅋ 그리고") == ""
    assert tail.stop == STOP
    assert tail.flush() == ""


@pytest.mark.parametrize("held", range(len(STOP)))
def test_what_was_held_back_is_sent_if_no_stop_string_comes_of_it(held: int) -> None:
    """Not a character is lost, and none of those before the cut is sent again."""
    choice = Choice(0, parts=["꿈을 꾸는 "])
    tail = TextAfterCut(choice, STOP[:held], [STOP], include=False)
    text = tail.push("이다") + tail.flush()
    assert text == STOP[:held] + "이다"
    assert tail.stop is None
