"""What a model directory says: its dialect, its special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kodolly_templates import Template, TemplateError, TokenizerTemplate, load, special_tokens_of
from kodolly_templates.sandbox import render


def write(directory: Path, **files: Any) -> None:
    """Write NAME.json for each keyword."""
    for name, data in files.items():
        (directory / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")


def test_special_tokens_come_from_all_files(tmp_path: Path) -> None:
    """Special added tokens and named tokens are listed once each; ordinary added ones are not."""
    write(
        tmp_path,
        tokenizer={
            "added_tokens": [
                {"content": "<s>", "special": True},
                {"content": "###", "special": False},
                {"content": "\n\n", "special": True},
            ]
        },
        tokenizer_config={
            "added_tokens_decoder": {"7": {"content": "<|sep|>", "special": True}},
            "eos_token": {"content": "</s>"},
            "additional_special_tokens": ["<|tel|>"],
        },
        special_tokens_map={"bos_token": "<s>", "additional_special_tokens": [{"content": "<x>"}]},
    )
    assert special_tokens_of(tmp_path) == ["<s>", "<|sep|>", "<|tel|>", "<x>", "</s>"]


def test_a_directory_without_tokenizer_files_has_no_special_tokens(tmp_path: Path) -> None:
    """Missing files are no error here."""
    assert special_tokens_of(tmp_path) == []


def test_broken_json_is_named(tmp_path: Path) -> None:
    """A file that is not JSON is refused by its path."""
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(TemplateError, match=r"tokenizer\.json: not JSON"):
        special_tokens_of(tmp_path)


def test_the_card_names_the_dialect(tmp_path: Path) -> None:
    """The model card's template is taken, and guards the tokenizer's special tokens."""
    write(tmp_path, model_card={"template": "dolly-ko"}, tokenizer_config={"eos_token": "</s>"})
    template = load(tmp_path)
    assert isinstance(template, Template)
    assert template.name == "dolly-ko"
    assert template.guard[-1] == "</s>"


def test_override_beats_the_card(tmp_path: Path) -> None:
    """A name given by the operator wins, `tokenizer` included."""
    write(tmp_path, model_card={"template": "dolly-ko"}, tokenizer_config={"chat_template": "x"})
    assert load(tmp_path, "koalpaca").name == "koalpaca"
    assert isinstance(load(tmp_path, "tokenizer"), TokenizerTemplate)


def test_without_any_name_the_models_own_template_is_used(tmp_path: Path) -> None:
    """No card and no override means the model's own chat template."""
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    assert load(tmp_path).prompt([{"role": "user", "content": "안녕"}]) == "안녕"


def test_no_template_at_all_says_what_to_do(tmp_path: Path) -> None:
    """A directory without a chat template is refused with the two ways out."""
    with pytest.raises(TemplateError, match=r"add chat_template\.jinja, or name a dialect"):
        load(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template": {"chat_template": "A"}},
        {"tokenizer_config": {"chat_template": "A"}},
        {
            "tokenizer_config": {
                "chat_template": [
                    {"name": "tool_use", "template": "B"},
                    {"name": "default", "template": "A"},
                ]
            }
        },
    ],
)
def test_chat_templates_are_found_in_every_place(tmp_path: Path, files: dict[str, Any]) -> None:
    """chat_template.json, tokenizer_config.json and its list of named templates are all read."""
    write(tmp_path, **files)
    assert TokenizerTemplate.from_directory(tmp_path).jinja() == "A"


@pytest.mark.parametrize(
    ("config", "tokenizer", "bos"),
    [
        ({"add_bos_token": True, "bos_token": "<s>"}, {}, "<s>"),
        ({"add_bos_token": False, "bos_token": "<s>"}, {}, ""),
        ({"bos_token": "<|endoftext|>"}, {"post_processor": {"type": "ByteLevel"}}, ""),
        ({"bos_token": "<|endoftext|>"}, {"post_processor": None}, ""),
    ],
)
def test_bos_is_written_only_where_the_tokenizer_writes_one(
    tmp_path: Path, config: dict[str, Any], tokenizer: dict[str, Any], bos: str
) -> None:
    """A named bos that the tokenizer never adds stays out of the chat template."""
    write(tmp_path, tokenizer_config=config, tokenizer=tokenizer)
    template = load(tmp_path, "koalpaca")
    assert isinstance(template, Template)
    rendered = render(template.jinja(), {"messages": [{"role": "user", "content": "x"}]})
    assert rendered == f"{bos}### 질문: x\n\n"


@pytest.mark.parametrize("family", ["neox", "llama"])
def test_saved_tokenizers_give_the_ids_they_give_to_text(
    tmp_path: Path, family: str, request: pytest.FixtureRequest
) -> None:
    """From a saved tokenizer, the chat has the ids of the prompt with the bos the tokenizer adds."""
    tokenizer = request.getfixturevalue(f"{family}_tokenizer")
    tokenizer.save_pretrained(tmp_path)
    template = load(tmp_path, "dolly-ko")
    assert isinstance(template, Template)
    chat = [{"role": "user", "content": "안녕 </s> <|endoftext|>"}]
    ids = tokenizer.apply_chat_template(
        chat, chat_template=template.jinja(), add_generation_prompt=True, return_dict=False
    )
    assert ids == tokenizer(template.prompt(chat))["input_ids"]
    assert template.bos_token == {"neox": "", "llama": "<s>"}[family]
