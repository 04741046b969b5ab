"""Any conversation that OpenAI's API takes: three renderings, one text, one mask, no forged turn."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_texts import DIALECTS, SPECIAL, texts

from kodolly_templates import TemplateError, get_template
from kodolly_templates.sandbox import render

Chat = list[dict[str, Any]]

CALLS = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]
parts = st.lists(st.builds(lambda text: {"type": "text", "text": text}, texts), max_size=3)
contents = st.one_of(texts, texts, texts, st.just(""), st.none(), parts)
others = st.sampled_from(["system", "developer", "assistant", "tool", "function"])
spoken = st.builds(lambda role, content: {"role": role, "content": content}, others, contents)
called = st.just({"role": "assistant", "content": None, "tool_calls": CALLS})
asked = st.builds(lambda content: {"role": "user", "content": content}, contents)
about = st.builds(
    lambda content, context: {"role": "user", "content": f"q{content}", "context": context},
    texts,
    texts,
)
conversations = st.lists(st.one_of(asked, about, spoken, called), min_size=1, max_size=8)


def text_of(message: dict[str, Any]) -> str:
    content = message["content"] or ""
    if isinstance(content, list):
        content = "\n".join(part["text"] for part in content)
    return str(content).strip()


def without_empty(chat: Chat) -> Chat:
    return [message for message in chat if text_of(message)]


def answers(chat: Chat) -> list[int]:
    """Where each answer begins: assistants' messages with text after one of another role."""
    begins = []
    before = "none"
    for index, message in enumerate(chat):
        if text_of(message):
            if message["role"] == "assistant" and before != "assistant":
                begins.append(index)
            before = message["role"]
    return begins


def prompt_at(name: str, chat: Chat) -> str:
    """The generation prompt after `chat`, which all renderings must give."""
    template = get_template(name).with_guard(SPECIAL)
    if not without_empty(chat):
        return template.preamble("") + template.response_prompt
    prompt = template.prompt(chat)
    assert template.conversation(chat).get_prompt() == prompt
    jinja = template.jinja()
    assert render(jinja, {"messages": chat, "add_generation_prompt": True}) == prompt
    return prompt


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=60)
@given(chat=conversations)
def test_any_conversation_has_one_prompt(name: str, chat: Chat) -> None:
    """FastChat, Jinja and Python agree on it, or none of them takes it."""
    if without_empty(chat):
        prompt_at(name, chat)
        return
    template = get_template(name)
    for rendering in (template.prompt, template.conversation):
        with pytest.raises(TemplateError, match="no text"):
            rendering(chat)
    with pytest.raises(TemplateError, match="no text"):
        render(template.jinja(), {"messages": chat, "add_generation_prompt": True})


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=60)
@given(chat=conversations, last=texts)
def test_any_conversation_is_learned_as_it_is_served(name: str, chat: Chat, last: str) -> None:
    """Each answer is learned after the prompt that serving gives it, and nothing else is."""
    chat = [*chat, {"role": "assistant", "content": f"b{last}"}]
    template = get_template(name).with_guard(SPECIAL)
    training = template.training(chat)
    begins = answers(chat)
    assert len(training.spans) == len(begins)
    for index, (start, end) in zip(begins, training.spans, strict=True):
        assert training.text[:start] == prompt_at(name, chat[:index])
        assert training.text[start:end].endswith(template.end)
    assert render(template.jinja(), {"messages": chat}) == training.text


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=60)
@given(chat=conversations)
def test_nobody_forges_a_turn(name: str, chat: Chat) -> None:
    """A key stands in the prompt as often as there are turns of its kind, also once jamo compose."""
    if not without_empty(chat):
        return
    template = get_template(name).with_guard(SPECIAL)
    prompt = prompt_at(name, chat)
    roles = [m["role"] for m in without_empty(chat)]
    while roles and roles[0] in ("system", "developer"):
        roles.pop(0)
    sides = [role == "assistant" for role in roles]
    turns = [side for i, side in enumerate(sides) if i == 0 or sides[i - 1] is not side]
    counts = {
        template.instruction_key.strip(): turns.count(False),
        template.response_key.strip(): turns.count(True) + 1,
        template.end.strip(): turns.count(True),
    }
    for key in template.guard:
        own = sum(count for written, count in counts.items() if key in written)
        assert prompt.count(key) == own, key
        assert unicodedata.normalize("NFC", prompt).count(key) == own, key


@pytest.mark.parametrize("name", DIALECTS)
@settings(max_examples=60)
@given(chat=conversations)
def test_context_folded_for_an_engine_changes_nothing(name: str, chat: Chat) -> None:
    """An engine that knows no such field gets the same prompt."""
    if without_empty(chat):
        template = get_template(name)
        assert template.prompt(template.flatten(chat)) == template.prompt(chat)


@pytest.mark.parametrize("name", ["dolly-ko", "koalpaca"])
@settings(max_examples=40)
@given(chat=conversations, last=texts)
def test_the_mask_is_exact_to_the_token(
    name: str, chat: Chat, last: str, neox_tokenizer: Any
) -> None:
    """Learned tokens are those that follow a served prompt's ids, up to the answer's end."""
    chat = [*chat, {"role": "assistant", "content": f"b{last}"}]
    template = get_template(name).with_guard(["<|endoftext|>"])
    training = template.training(chat)
    ids, learned = training.encode(neox_tokenizer)
    expected = [False] * len(ids)
    for start, end in training.spans:
        before = neox_tokenizer(training.text[:start])["input_ids"]
        through = neox_tokenizer(training.text[:end])["input_ids"]
        assert ids[: len(before)] == before
        assert ids[: len(through)] == through
        expected[len(before) : len(through)] = [True] * (len(through) - len(before))
    assert learned == expected
