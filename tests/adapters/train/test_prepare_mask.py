"""The response mask: batches give what the slow, obvious reference gives, token for token."""

from __future__ import annotations

import importlib
import unicodedata
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import tiny_tokenizer
from support.tuning_rows import (
    DIALECTS,
    QUIET,
    Messages,
    dialogues,
    dolly,
    recipe,
    tokenizer,
    tokenizer_for,
    write_lines,
)

from kodolly_adapters.errors import RecipeError
from kodolly_adapters.train.dataset import prepare
from kodolly_adapters.train.encode import IGNORED, Encoder, Tokens, guarded
from kodolly_templates import get_template
from kodolly_templates.tokenizer import TokenizerTemplate
from kodolly_templates.training import TrainingText

ROOT = Path(__file__).resolve().parents[3]
KINDS = ("neox", "llama")
ODD = ("Zs", "Zl", "Zp", "Cc", "Cf", "Cn")


def reference(template: Any, messages: Messages, made: Any) -> tuple[list[int], list[int]]:
    """(ids, labels), one text at a time, every token looked at."""
    ids, learned = template.training(messages, made.eos_token).encode(made)
    return ids, [
        token if is_learned else IGNORED for token, is_learned in zip(ids, learned, strict=True)
    ]


def labels_of(tokens: Tokens) -> list[int]:
    """The ids where they are learned, IGNORED elsewhere."""
    labels = [IGNORED] * len(tokens)
    for start, end in tokens.learned:
        labels[start:end] = tokens.ids[start:end]
    return labels


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DIALECTS)
@settings(QUIET, max_examples=25)
@given(chats=st.lists(dialogues(), min_size=1, max_size=4))
def test_a_batch_is_the_reference_row_by_row(name: str, kind: str, chats: list[Messages]) -> None:
    """Ids and labels of any dialogues in one call are those of TrainingText.encode for each."""
    made = tokenizer_for(kind, name)
    template = guarded(get_template(name), made)
    encoder = Encoder(made, get_template(name))

    encoded = encoder.encode([encoder.text(messages) for messages in chats])

    for tokens, messages in zip(encoded, chats, strict=True):
        assert (tokens.ids, labels_of(tokens)) == reference(template, messages, made)
        assert tokens.learned_count == sum(label != IGNORED for label in labels_of(tokens))
        assert labels_of(tokens)[-1] == made.eos_token_id
        assert len(tokens.learned) == sum(message["role"] == "assistant" for message in messages)


@pytest.mark.parametrize("kind", ["neox", "trimmed", "llama", "metaspace"])
def test_any_span_is_the_references(kind: str) -> None:
    """Wherever a span begins and ends, in a word or among spaces, the same tokens lie wholly in it."""
    made = tokenizer(kind)
    text = "안녕   서울은  \n 🙂 다  "
    spans = list(combinations_with_replacement(range(len(text) + 1), 2))
    trainings = [TrainingText(text, (span,)) for span in spans]

    encoded = Encoder(made, get_template("dolly-ko")).encode(trainings)

    for training, tokens in zip(trainings, encoded, strict=True):
        ids, learned = training.encode(made, add_special_tokens=False)
        (start, end), marks = tokens.learned[0], [False] * len(tokens)
        marks[start:end] = [True] * (end - start)
        assert (tokens.ids, marks) == (ids, learned), training.spans


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_whitespace_is_cut_as_the_tokenizer_cuts(kind: str) -> None:
    """Spaces, controls and invisible marks of all sorts, alone and in runs, give the reference's tokens."""
    made = tokenizer(kind)
    template = guarded(get_template("dolly-ko"), made)
    encoder = Encoder(made, template)
    marks = [mark for mark in map(chr, range(0x3001)) if unicodedata.category(mark) in ODD]
    chats = [
        [
            {"role": "user", "content": f"가{mark}나{mark}{mark} 다 {mark} 라{mark}\n{mark}마"},
            {"role": "assistant", "content": f"사 {mark}  {mark}아\n {mark}자"},
        ]
        for mark in marks
    ]

    encoded = encoder.encode([encoder.text(chat) for chat in chats])

    assert len(marks) > 100
    for tokens, chat in zip(encoded, chats, strict=True):
        assert (tokens.ids, labels_of(tokens)) == reference(template, chat, made)


@pytest.mark.parametrize("kind", [*KINDS, "metaspace"])
@settings(QUIET, max_examples=40)
@given(messages=dialogues())
def test_ids_begin_with_the_served_prompt(kind: str, messages: Messages) -> None:
    """What comes before the first answer is what a server makes of the same messages, bos and all."""
    made = tokenizer(kind)
    template = guarded(get_template("dolly-ko"), made)
    encoder = Encoder(made, template)
    first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")

    tokens = encoder.encode_dialogue(messages)

    served = made.apply_chat_template(
        messages[:first],
        chat_template=template.jinja(bos_token=encoder.bos),  # type: ignore[call-arg]
        add_generation_prompt=True,
        tokenize=False,
    )
    assert encoder.bos == ("" if kind == "neox" else "<s>")
    assert tokens.ids[: tokens.learned[0][0]] == made(served, add_special_tokens=False)["input_ids"]


def tokenizer_template() -> TokenizerTemplate:
    return TokenizerTemplate(tiny_tokenizer().chat_template, {}, ("<|im_start|>", "<|im_end|>"))


@settings(QUIET, max_examples=40)
@given(messages=dialogues())
def test_the_models_own_chat_template_is_masked_too(messages: Messages) -> None:
    """With `tokenizer` as template every answer is learned through its end token, contexts included."""
    made = tokenizer("neox")
    template = guarded(tokenizer_template(), made)

    tokens = Encoder(made, template).encode_dialogue(messages)

    assert (tokens.ids, labels_of(tokens)) == reference(template, template.flatten(messages), made)
    assert labels_of(tokens).count(made.eos_token_id) == len(tokens.learned)


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path: Path) -> None:
    """A chat template whose prompts are no beginnings of its dialogues cannot be masked: RecipeError."""
    source = "{{ messages | length }}" + tiny_tokenizer().chat_template
    rows = [
        {"messages": [{"role": "user", "content": "가"}, {"role": "assistant", "content": "나"}]}
    ]
    chosen = recipe(write_lines(tmp_path / "rows.jsonl", rows))

    with pytest.raises(RecipeError, match=r'template = "tokenizer" .*rows\.jsonl:1: .*dolly-ko'):
        prepare(chosen, tokenizer("neox"), TokenizerTemplate(source), tmp_path / "cache")


def test_no_row_forges_a_turn(tmp_path: Path) -> None:
    """Special tokens and keys in a row's texts stay text, whether the template was guarded or not."""
    made = tokenizer("neox")
    text = "<|endoftext|><|im_end|>### 끝"
    source = write_lines(tmp_path / "rows.jsonl", [dolly(text, text, text)])

    prepared = prepare(recipe(source), made, get_template("dolly-ko"), tmp_path / "cache")

    ids = prepared.train[0]["input_ids"]
    assert ids.count(made.eos_token_id) == 1
    assert made.convert_tokens_to_ids("<|endoftext|>") not in ids
    assert made.decode(ids).count("### 끝") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_trl(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same texts TRL's own prompt and completion give the same ids and labels."""
    made = tokenizer(kind)
    rows = [
        dolly("대한민국의 수도는 어디인가요?", "서울입니다."),
        dolly("요약하세요.", "한강이 흐릅니다.\n\n1. 다리", "서울에는 한강이 흐르고 다리가 여러 개 있습니다."),
        dolly("Write.", "👩‍👩‍👧‍👦 a b"),
    ]  # fmt: skip
    template = guarded(get_template("dolly-ko"), made)

    prepared = prepare(
        recipe(write_lines(tmp_path / "rows.jsonl", rows)), made, template, tmp_path / "cache"
    )

    monkeypatch.syspath_prepend(str(ROOT))  # benchmarks/ is no installed package
    peer = importlib.import_module("benchmarks.train.prepare")
    texts = [peer.split(template, row, made.eos_token) for row in rows]
    theirs = peer.with_trl(texts, made, tmp_path)
    assert list(prepared.train["input_ids"]) == list(theirs["input_ids"])
    assert list(prepared.train["labels"]) == list(theirs["labels"])
