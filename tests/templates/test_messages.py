"""Conversations that are refused, in the same words by Python and by the Jinja template."""

from __future__ import annotations

from typing import Any

import pytest

from kodolly_templates import TemplateError, get_template
from kodolly_templates.sandbox import render

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "message 0: a conversation needs a user message"),
        ([SYSTEM], "message 1: a conversation needs a user message"),
        ([USER, USER], "message 1: expected role assistant, got user"),
        ([ASSISTANT], "message 0: expected role user, got assistant"),
        ([SYSTEM, ASSISTANT], "message 1: expected role user, got assistant"),
        ([USER, ASSISTANT, SYSTEM], "message 2: expected role user, got system"),
        ([USER, {"role": "tool", "content": "x"}], "message 1: expected role assistant, got tool"),
        ([{"role": "user", "content": " \n"}], "message 0: content is empty"),
        ([{"role": "user", "content": None}], "message 0: content is empty"),
        ([{"role": "user"}], "message 0: content is empty"),
        ([USER, {"role": "assistant", "content": ""}, USER], "message 1: content is empty"),
        ([USER, ASSISTANT], "message 1: the last message must be the user's"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "message 0: only content parts of type text are supported",
        ),
        (
            [{"role": "user", "content": {"text": "x"}}],
            "message 0: content is neither text nor a list of parts",
        ),
        (
            [{"role": "user", "content": 5}],
            "message 0: content is neither text nor a list of parts",
        ),
    ],
)
def test_refusals_name_the_message(chat: list[dict[str, Any]], message: str) -> None:
    """A conversation nobody can answer is refused with the index of the message at fault."""
    template = get_template("dolly-ko")
    with pytest.raises(TemplateError) as caught:
        template.prompt(chat)
    assert str(caught.value) == message
    with pytest.raises(TemplateError) as caught:
        render(template.jinja(), {"messages": chat, "add_generation_prompt": True})
    assert str(caught.value) == f"the chat template refused: {message}"


def test_content_parts_are_joined_by_a_newline() -> None:
    """Several text parts are one text, in Python and in Jinja."""
    template = get_template("koalpaca")
    parts = [{"type": "text", "text": "하나"}, {"type": "text", "text": "둘"}]
    chat = [{"role": "user", "content": parts}]
    assert template.prompt(chat) == "### 질문: 하나\n둘\n\n### 답변:"
    rendered = render(template.jinja(), {"messages": chat, "add_generation_prompt": True})
    assert rendered == template.prompt(chat)


def test_without_generation_prompt_the_users_turn_stays_open() -> None:
    """Asked for no generation prompt, the Jinja template writes no response key."""
    rendered = render(get_template("koalpaca").jinja(), {"messages": [USER]})
    assert rendered == "### 질문: a\n\n"
