"""What the page's events give back to the page."""

from types import SimpleNamespace
from typing import Any

import gradio as gr
from support.scripted_engine import ScriptedEngine

from kodolly.web.chat import Chat
from kodolly.web.events import Events, idle
from kodolly.web.texts import KO

KOREAN: Any = SimpleNamespace(headers={"accept-language": "ko"})
SETTINGS = ("", 0.7, 0.95, 512)
TALK = [
    {"role": "user", "content": [{"type": "text", "text": "하나"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "1"}]},
    {"role": "user", "content": [{"type": "text", "text": "둘"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "2"}]},
]


async def updates(chat: Chat, data: Any, text: str, history: Any) -> list[tuple[Any, ...]]:
    event = gr.EventData(None, data)
    answer = Events(chat).answer(text, history, "demo", *SETTINGS, event, KOREAN)
    return [update async for update in answer]


def sent(engine: ScriptedEngine) -> list[str]:
    return [message["content"] for message in engine.requests[-1].body["messages"]]


async def test_sending_clears_the_box_and_offers_stop(chat: Chat, engine: ScriptedEngine) -> None:
    """The question shows at once, Stop takes the place of Send, then the answer comes."""
    first, *_, last = await updates(chat, None, "안녕", [])
    assert first[0]["value"] == ""
    assert (first[0]["submit_btn"], first[0]["stop_btn"]) == (False, True)
    assert [message["content"] for message in first[1]] == ["안녕"]
    assert last[1][-1]["content"] == engine.script.text


async def test_empty_input_asks_nothing(chat: Chat, engine: ScriptedEngine) -> None:
    """A blank message changes nothing and reaches no engine."""
    assert await updates(chat, None, "  \n", TALK) == [(gr.skip(), gr.skip())]
    assert engine.requests == []


async def test_edit_sends_the_history_up_to_the_edit(chat: Chat, engine: ScriptedEngine) -> None:
    """Editing the second question keeps the first exchange and nothing after."""
    data = {"index": 2, "value": "둘이 아니라 셋", "previous_value": "둘"}
    first, *_ = await updates(chat, data, "초안", TALK)
    assert sent(engine) == ["하나", "1", "둘이 아니라 셋"]
    assert "value" not in first[0]  # the draft in the box stays


async def test_retry_sends_the_same_question(chat: Chat, engine: ScriptedEngine) -> None:
    """The last answer is not part of what is asked again."""
    await updates(chat, {"index": 2, "value": "둘"}, "", TALK)
    assert sent(engine) == ["하나", "1", "둘"]


async def test_a_notices_button_is_a_retry(chat: Chat, engine: ScriptedEngine) -> None:
    """The notice of a failure goes when its button is pressed, and the question is sent again."""
    engine.script.fail_status = 503
    failed = (await updates(chat, None, "셋", TALK))[-1][1]
    assert KO["no_worker"] in failed[-1]["content"]
    engine.script.fail_status = None
    states = await updates(chat, {"index": 5, "value": "retry"}, "", failed)
    assert sent(engine) == ["하나", "1", "둘", "2", "셋"]
    assert states[-1][1][-1]["content"] == engine.script.text
    assert not any(KO["no_worker"] in message["content"] for message in states[0][1])


def test_undo_gives_the_question_back(chat: Chat) -> None:
    """The last exchange leaves the conversation; its question is in the box again."""
    box, history = Events(chat).undo(TALK)
    assert box["value"] == "둘"
    assert [message["content"] for message in history] == ["하나", "1"]
    assert Events(chat).undo([]) == (idle(), gr.skip())


def test_examples_speak_the_readers_language(chat: Chat) -> None:
    """Suggestions are Korean for a Korean browser."""
    texts = [example["text"] for example in Events(chat).greet(KOREAN)["examples"]]
    assert texts == [KO["example_1"], KO["example_2"], KO["example_3"]]
