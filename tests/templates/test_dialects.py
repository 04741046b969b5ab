"""The dialects that ship: databricks' and KoAlpaca's prompts to the byte, and the Korean one."""

from __future__ import annotations

from typing import Any

import pytest

from kodolly_templates import TemplateError, get_template, list_templates, register_all

INTRO = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
ASK = {"role": "user", "content": "What is Dolly?"}
ASK_WITH_CONTEXT = {"role": "user", "content": "Who?", "context": "Dolly was a sheep."}
ANSWER = {"role": "assistant", "content": "A sheep."}


def test_all_dialects_are_listed() -> None:
    """The four dialects are found by name, sorted."""
    assert list_templates() == ("dolly-ko", "dolly-v2", "dolly-v2-special", "koalpaca")


def test_unknown_dialect_is_named() -> None:
    """An unknown name is refused with the known ones."""
    with pytest.raises(TemplateError, match="no template 'dolly'; known: dolly-ko, dolly-v2"):
        get_template("dolly")


@pytest.mark.parametrize("name", ["dolly-v2", "dolly-v2-special"])
def test_dolly_v2_generation_prompt(name: str) -> None:
    """databricks' generation prompt, to the byte."""
    expected = f"{INTRO}\n\n### Instruction:\nWhat is Dolly?\n\n### Response:\n"
    assert get_template(name).prompt([ASK]) == expected


@pytest.mark.parametrize("name", ["dolly-v2", "dolly-v2-special"])
def test_dolly_v2_training_texts(name: str) -> None:
    """databricks' two training texts, to the byte: the context key is "Input:" without marks."""
    template = get_template(name)
    plain = f"{INTRO}\n\n### Instruction:\nWhat is Dolly?\n\n### Response:\nA sheep.\n\n### End"
    context = (
        f"{INTRO}\n\n### Instruction:\nWho?\n\nInput:\nDolly was a sheep.\n\n"
        "### Response:\nA sheep.\n\n### End"
    )
    assert template.training([ASK, ANSWER]).text == plain
    assert template.training([ASK_WITH_CONTEXT, ANSWER]).text == context


def test_dolly_v2_special_tokens() -> None:
    """The variant alone names databricks' three tokens, in databricks' order."""
    expected = ("### End", "### Instruction:", "### Response:\n")
    assert get_template("dolly-v2-special").special_tokens == expected
    assert get_template("dolly-v2").special_tokens == ()


def test_koalpaca_texts() -> None:
    """KoAlpaca v1.1's prompt and training text, to the byte, with and without a context."""
    template = get_template("koalpaca")
    ask = {"role": "user", "content": "딥러닝이 뭐야?"}
    answer = {"role": "assistant", "content": "학습 방법입니다."}
    assert template.prompt([ask]) == "### 질문: 딥러닝이 뭐야?\n\n### 답변:"
    with_context = template.prompt([{**ask, "context": "글"}])
    assert with_context == "### 질문: 딥러닝이 뭐야?\n\n### 맥락: 글\n\n### 답변:"
    expected = "### 질문: 딥러닝이 뭐야?\n\n### 답변: 학습 방법입니다.<|endoftext|>"
    assert template.training([ask, answer]).text == expected


def test_dolly_ko_conversation() -> None:
    """Introduction, system text, context and earlier turns each have their paragraph."""
    template = get_template("dolly-ko")
    chat: list[dict[str, Any]] = [
        {"role": "system", "content": " 반말로 답하세요.\n"},
        {"role": "user", "content": "수도는?", "context": "대한민국"},
        {"role": "assistant", "content": "서울이야."},
        {"role": "user", "content": [{"type": "text", "text": "고마워"}]},
    ]
    assert template.prompt(chat) == (
        f"{template.introduction}\n\n반말로 답하세요.\n\n"
        "### 명령어:\n수도는?\n\n### 맥락:\n대한민국\n\n### 응답:\n서울이야.\n\n### 끝\n\n"
        "### 명령어:\n고마워\n\n### 응답:\n"
    )


@pytest.mark.parametrize("name", list_templates())
def test_every_dialect_stops_on_its_end_and_on_a_new_turn(name: str) -> None:
    """The end key and the instruction key both stop an answer."""
    template = get_template(name)
    assert template.end.strip() in template.stop
    assert template.instruction_key.strip() in template.stop


def test_registration_in_fastchat() -> None:
    """Registered dialects come back from FastChat's own registry, twice over, and render there."""
    from fastchat.conversation import get_conv_template

    register_all()
    register_all()
    for name in list_templates():
        conversation = get_conv_template(name)
        conversation.append_message(conversation.roles[0], "안녕")
        conversation.append_message(conversation.roles[1], None)
        prompt = get_template(name).prompt([{"role": "user", "content": "안녕"}])
        assert conversation.get_prompt() == prompt
        assert conversation.stop_str == list(get_template(name).stop)
