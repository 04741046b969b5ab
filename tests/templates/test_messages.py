"""Conversations as OpenAI's API takes them: what each one reads as, and what is refused, in the
same words by Python and by the Jinja template."""

from __future__ import annotations

from typing import Any

import pytest

from kodolly_templates import TemplateError, get_template
from kodolly_templates.sandbox import render

USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "s"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def both(template_name: str, chat: list[dict[str, Any]]) -> str:
    """The generation prompt of a chat, on which Python, Jinja and FastChat agree."""
    template = get_template(template_name)
    prompt = template.prompt(chat)
    assert render(template.jinja(), {"messages": chat, "add_generation_prompt": True}) == prompt
    assert template.conversation(chat).get_prompt() == prompt
    return prompt


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "the conversation has no text"),
        ([{"role": "user", "content": " \n"}], "the conversation has no text"),
        ([{"role": "user", "content": None}], "the conversation has no text"),
        ([{"role": "user"}, {"role": "assistant", "content": []}], "the conversation has no text"),
        ([USER, {"role": "pope", "content": "x"}], "message 1: unknown role pope"),
        (
            [{"role": "user", "content": "", "context": "c"}],
            "message 0: a context needs a content beside it",
        ),
        *(
            ([{"role": "user", "content": [part]}], f"message 0: {reason}")
            for reason in ["only content parts of type text are supported"]
            for part in [
                {"type": "image_url", "image_url": {"url": "x"}},
                {"type": "text"},
                {"type": "text", "text": 5},
                {"text": "x"},
                "x",
            ]
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
    """What no template can say is refused with the index of the message at fault."""
    template = get_template("dolly-ko")
    with pytest.raises(TemplateError) as caught:
        template.prompt(chat)
    assert str(caught.value) == message
    with pytest.raises(TemplateError) as caught:
        render(template.jinja(), {"messages": chat, "add_generation_prompt": True})
    assert str(caught.value) == f"the chat template refused: {message}"


Q, A = "### 질문: ", "### 답변: "


@pytest.mark.parametrize(
    ("chat", "prompt"),
    [
        ([SYSTEM, USER], f"s\n\n{Q}a"),
        ([SYSTEM], "s"),
        ([{"role": "developer", "content": "s"}, USER], f"s\n\n{Q}a"),
        ([SYSTEM, {"role": "developer", "content": "d"}, USER], f"s\n\nd\n\n{Q}a"),
        ([USER, USER], f"{Q}a\n\na"),
        ([USER, ASSISTANT, SYSTEM, USER], f"{Q}a\n\n{A}b\n\n{Q}s\n\na"),
        ([USER, ASSISTANT, ASSISTANT, USER], f"{Q}a\n\n{A}b\n\nb\n\n{Q}a"),
        ([ASSISTANT, USER], f"{A}b\n\n{Q}a"),
        ([SYSTEM, ASSISTANT, USER], f"s\n\n{A}b\n\n{Q}a"),
        ([USER, ASSISTANT], f"{Q}a\n\n{A}b"),
        ([USER, {"role": "assistant", "content": ""}, USER], f"{Q}a\n\na"),
        ([USER, {"role": "assistant", "content": None}, USER], f"{Q}a\n\na"),
        ([{"role": "user", "content": ""}, ASSISTANT, USER], f"{A}b\n\n{Q}a"),
        (
            [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "1", "content": "t"},
            ],
            f"{Q}a\n\nt",
        ),
        (
            [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "n"}]}, USER],
            f"{Q}a\n\n{A}n\n\n{Q}a",
        ),
        (
            [USER | {"context": "c"}, USER],
            f"{Q}a\n\n### 맥락: c\n\na",
        ),
    ],
)
def test_what_a_conversation_reads_as(chat: list[dict[str, Any]], prompt: str) -> None:
    """Neighbours are joined, empty messages dropped, a late system text is said where it stands."""
    end = get_template("koalpaca").end
    closed = prompt.replace("b\n\n###", f"b{end}\n\n###").replace("n\n\n###", f"n{end}\n\n###")
    if prompt.endswith(f"{A}b"):
        closed += end
    assert both("koalpaca", chat) == f"{closed}\n\n### 답변:"


def test_content_parts_are_joined_by_a_newline() -> None:
    """Several text parts are one text, in Python and in Jinja."""
    parts = [{"type": "text", "text": "하나"}, {"type": "text", "text": "둘"}]
    chat = [{"role": "user", "content": parts}]
    assert both("koalpaca", chat) == "### 질문: 하나\n둘\n\n### 답변:"


def test_without_generation_prompt_the_users_turn_stays_open() -> None:
    """Asked for no generation prompt, the Jinja template writes no response key."""
    rendered = render(get_template("koalpaca").jinja(), {"messages": [USER]})
    assert rendered == "### 질문: a\n\n"
