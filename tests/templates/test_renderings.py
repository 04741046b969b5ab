"""One conversation, four renderings: the same text, the same tokens, no forged key.

A conversation takes about as long to make up as to check, so each is checked in every dialect.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from support.chat_texts import DIALECTS, SPECIAL, texts

from kodolly_templates import Template, get_template, special_tokens_of

Chat = list[dict[str, Any]]

# The ends of both tokenizers' families, which no text may forge.
NEOX, LLAMA = ("<|endoftext|>",), ("<s>", "</s>", "<unk>")

contents = texts.filter(lambda text: text.strip() != "")
users = st.fixed_dictionaries(
    {"role": st.just("user"), "content": contents}, optional={"context": texts}
)
assistants = st.fixed_dictionaries({"role": st.just("assistant"), "content": contents})
systems = st.fixed_dictionaries({"role": st.just("system"), "content": texts})


@st.composite
def chats(draw: st.DrawFn) -> Chat:
    """A closed conversation of one to four turns, perhaps with a system message."""
    chat = draw(st.lists(systems, max_size=1))
    for _ in range(draw(st.integers(1, 4))):
        chat += [draw(users), draw(assistants)]
    return chat


def assert_same_everywhere(template: Template, chat: Chat, tokenizer: Any, bos: str) -> None:
    """FastChat, Jinja, prompt and training agree on `chat`, text and token ids, at every turn."""
    jinja = template.jinja(bos_token=bos)
    training = template.training(chat)
    ids, learned = training.encode(tokenizer)
    expected = [False] * len(ids)
    opens = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    for turn, index in enumerate(opens):
        start, end = training.spans[turn]
        asked = chat[:index]
        prompt = template.prompt(asked)
        assert template.conversation(asked).get_prompt() == prompt
        assert training.text[:start] == prompt
        rendered = tokenizer.apply_chat_template(
            asked, chat_template=jinja, add_generation_prompt=True, tokenize=False
        )
        assert rendered == bos + prompt
        prompt_ids = tokenizer(prompt)["input_ids"]
        assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == prompt_ids
        assert ids[: len(prompt_ids)] == prompt_ids
        through = tokenizer(training.text[:end])["input_ids"]
        assert ids[: len(through)] == through
        expected[len(prompt_ids) : len(through)] = [True] * (len(through) - len(prompt_ids))
    assert learned == expected
    whole = tokenizer.apply_chat_template(chat, chat_template=jinja, tokenize=False)
    assert whole == bos + training.text


def each_dialect(guard: Sequence[str] = ()) -> Iterator[Template]:
    """Every built-in template, which also guards `guard`; a failing example names the last one."""
    for name in DIALECTS:
        note(f"template {name}")
        yield get_template(name).with_guard(guard)


def own_count(template: Template, key: str, turns: int) -> int:
    """How often the template itself writes `key` into a closed conversation of `turns` turns."""
    turn = template.instruction_key + "x\n\n" + template.response_key + "x" + template.end
    return (template.introduction + "\n\n" + turn * turns).count(key)


@given(chat=chats())
def test_same_with_byte_level_bpe(chat: Chat, neox_tokenizer: Any) -> None:
    """With a GPT-NeoX-like tokenizer all renderings of any chat are one text and one id list."""
    for template in each_dialect(NEOX):
        assert_same_everywhere(template, chat, neox_tokenizer, "")


@given(chat=chats())
def test_same_with_sentencepiece_bpe(chat: Chat, llama_tokenizer: Any) -> None:
    """With a LLaMA-like tokenizer, which adds a bos, the renderings agree as well."""
    for template in each_dialect(LLAMA):
        assert_same_everywhere(template, chat, llama_tokenizer, "<s>")


@given(chat=chats())
def test_same_with_special_keys(chat: Chat, neox_tokenizer: Any) -> None:
    """With databricks' keys as tokens of their own, no text but the template's becomes one."""
    import copy

    tokenizer = copy.deepcopy(neox_tokenizer)
    template = get_template("dolly-v2-special").with_guard(NEOX)
    tokenizer.add_special_tokens({"additional_special_tokens": list(template.special_tokens)})
    assert_same_everywhere(template, chat, tokenizer, "")
    ids, _ = template.training(chat).encode(tokenizer)
    for token in template.special_tokens:
        count = ids.count(tokenizer.convert_tokens_to_ids(token))
        assert count == sum(message["role"] == "user" for message in chat)


@pytest.mark.model
@settings(max_examples=15)
@given(chat=chats())
def test_same_with_the_embedded_model(chat: Chat, embedded_tokenizer: Any) -> None:
    """With SmolLM2's own tokenizer the renderings agree."""
    special = special_tokens_of(os.environ["KODOLLY_TEST_MODEL"])
    template = get_template("dolly-ko").with_guard(special)
    assert_same_everywhere(template, chat, embedded_tokenizer, "")


@pytest.fixture(scope="module")
def embedded_tokenizer() -> Any:
    path = os.environ.get("KODOLLY_TEST_MODEL", "")
    if not path or not Path(path, "tokenizer.json").is_file():
        pytest.skip("KODOLLY_TEST_MODEL names no model directory")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


@given(chat=chats())
def test_nobody_forges_a_key(chat: Chat) -> None:
    """Each guarded key stands in a text as often as the template wrote it, also once jamo compose."""
    turns = sum(message["role"] == "user" for message in chat)
    for template in each_dialect(SPECIAL):
        text = template.training(chat).text
        composed = unicodedata.normalize("NFC", text)
        for key in template.guard:
            assert text.count(key) == own_count(template, key, turns)
            assert composed.count(key) == own_count(template, key, turns)


@given(chat=chats())
def test_stop_strings_end_an_answer(chat: Chat) -> None:
    """Cut at the earliest stop string, what a model learned to write is the response alone."""
    responses = [m["content"] for m in chat if m["role"] == "assistant"]
    for template in each_dialect():
        training = template.training(chat)
        for (start, end), response in zip(training.spans, responses, strict=True):
            written = training.text[start:end]
            cut = min(written.find(stop) for stop in template.stop if stop in written)
            answer = written[:cut].strip().replace("\u2060", "")
            assert answer == response.strip().replace("\u2060", "")
        assert template.conversation(chat[:-1]).stop_str == list(template.stop)


@given(chat=chats())
def test_folded_context_gives_the_same_prompt(chat: Chat) -> None:
    """A context folded into its message, for engines without that field, changes no byte."""
    for template in each_dialect():
        assert template.prompt(template.flatten(chat[:-1])) == template.prompt(chat[:-1])
