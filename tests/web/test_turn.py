"""What a person did, as the conversation to answer."""

from kodolly.web.history import assistant, notice, user
from kodolly.web.turn import INPUT_LIMIT, read_turn

TALK = [user("하나"), assistant("1"), user("둘"), assistant("2")]


def test_sent_message_is_appended() -> None:
    """The question comes last, trimmed, and the input box is to be emptied."""
    turn = read_turn(None, "  셋\n", TALK)
    assert turn is not None
    assert turn.history == [*TALK, user("셋")]
    assert turn.from_input


def test_empty_message_is_ignored() -> None:
    """Blank input asks nothing, nor does a value that is no text."""
    assert read_turn(None, " \n\t ", TALK) is None
    assert read_turn(None, None, TALK) is None


def test_edit_continues_from_there() -> None:
    """An edited question drops all that followed it; the draft in the input box stays."""
    data = {"index": 2, "value": "둘의 새 말", "previous_value": "둘"}
    turn = read_turn(data, "draft", TALK)
    assert turn is not None
    assert turn.history == [*TALK[:2], user("둘의 새 말")]
    assert not turn.from_input


def test_edit_with_a_pair_as_index() -> None:
    """Gradio may give a message's place as a pair."""
    turn = read_turn({"index": [0, 0], "value": "새 말", "previous_value": "하나"}, "", TALK)
    assert turn is not None
    assert turn.history == [user("새 말")]


def test_retry_answers_the_last_question_again() -> None:
    """The last answer and any notice go, the question stays."""
    turn = read_turn({"index": 2, "value": "둘"}, "", [*TALK, notice("ko", "lost")])
    assert turn is not None
    assert turn.history == TALK[:3]


def test_retry_of_nothing() -> None:
    """With no question there is nothing to answer."""
    assert read_turn({"index": 0, "value": "retry"}, "", []) is None


def test_example_starts_a_conversation() -> None:
    """A chosen example is the first question."""
    turn = read_turn({"index": 1, "value": {"text": "예시", "files": []}}, "", [])
    assert turn is not None
    assert turn.history == [user("예시")]


def test_long_message_is_cut_and_said() -> None:
    """No message is longer than the bound, whatever the browser lets through."""
    turn = read_turn(None, "가" * (INPUT_LIMIT + 1), [])
    assert turn is not None
    assert len(turn.history[0]["content"]) == INPUT_LIMIT
    assert turn.too_long
