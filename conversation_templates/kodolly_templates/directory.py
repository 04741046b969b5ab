"""What a model directory says about its words, read with plain json: no transformers needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import TemplateError
from .guard import is_key

MAX_BYTES = 64 * 1024 * 1024  # the largest tokenizer.json of a known model is about 35 MB
TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} when there is no such file; TemplateError when it is not one."""
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_BYTES:
        raise TemplateError(f"{path}: larger than {MAX_BYTES} bytes")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TemplateError(f"{path}: cannot be read: {error.strerror}") from error
    except RecursionError as error:
        raise TemplateError(f"{path}: nested too deeply to be read") from error
    except ValueError as error:
        raise TemplateError(f"{path}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise TemplateError(f"{path}: not a JSON object")
    return data


def card_template(model_dir: Path) -> str | None:
    """The template name in model_card.json, or None."""
    name = read_json(model_dir / "model_card.json").get("template")
    return name if isinstance(name, str) and name else None


def named_tokens(model_dir: Path) -> dict[str, str]:
    """The tokenizer's named special tokens, such as {"eos_token": "</s>"}, that are set."""
    config = read_json(model_dir / "tokenizer_config.json")
    mapped = read_json(model_dir / "special_tokens_map.json")
    found = {name: _content(config.get(name, mapped.get(name))) for name in TOKEN_NAMES}
    return {name: token for name, token in found.items() if token}


def special_tokens_of(model_dir: str | Path) -> list[str]:
    """Every special token of the tokenizer in `model_dir`, in file order and without repeats.

    Tokens that cannot be guarded (of one character, or around a newline) are left out. Raises
    TemplateError for a file that is not JSON.
    """
    directory = Path(model_dir)
    tokens = dict.fromkeys([*_added_tokens(directory), *named_tokens(directory).values()])
    return [token for token in tokens if is_key(token)]


def bos_token_of(model_dir: str | Path) -> str:
    """The token the tokenizer itself puts before a text, "" when it puts none.

    `add_bos_token` in tokenizer_config.json decides where it is given, else tokenizer.json's
    post-processor. GPT-NeoX's tokenizers name a bos that they never write.
    """
    directory = Path(model_dir)
    adds = read_json(directory / "tokenizer_config.json").get("add_bos_token")
    if isinstance(adds, bool):
        return named_tokens(directory).get("bos_token", "") if adds else ""
    return _first_token(read_json(directory / "tokenizer.json").get("post_processor"))


def chat_template_of(model_dir: Path) -> str:
    """The source of the model's own chat template; TemplateError, saying what to do, when it has none."""
    source = model_dir / "chat_template.jinja"
    if source.is_file():
        try:
            return source.read_text(encoding="utf-8")
        except OSError as error:
            raise TemplateError(f"{source}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise TemplateError(f"{source}: not UTF-8: {error}") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(model_dir / name).get("chat_template")
        if isinstance(template, list):  # several by name; "default" is the one for chats
            named = [entry for entry in template if isinstance(entry, Mapping)]
            template = {entry.get("name"): entry.get("template") for entry in named}.get("default")
        if isinstance(template, str) and template:
            return template
    raise TemplateError(
        f"{model_dir} has no chat template: add chat_template.jinja, or name a dialect as "
        f'"template" in its model_card.json'
    )


def _added_tokens(directory: Path) -> Iterator[str]:
    for name, key in (
        ("tokenizer.json", "added_tokens"),
        ("tokenizer_config.json", "added_tokens_decoder"),
    ):
        for token in _tokens(directory / name, read_json(directory / name).get(key)):
            if not isinstance(token, Mapping):
                raise TemplateError(f"{directory / name}: an added token is no JSON object")
            if token.get("special"):
                yield str(token.get("content", ""))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        extra = read_json(directory / name).get("additional_special_tokens")
        for token in _tokens(directory / name, extra):
            yield _content(token)


def _tokens(file: Path, value: object) -> list[object]:
    """The tokens in a list, or in an object by their numbers; TemplateError for anything else."""
    if isinstance(value, Mapping):
        return list(value.values())
    if value is None or isinstance(value, list):
        return list(value or [])
    raise TemplateError(f"{file}: tokens must be a list or an object, not {type(value).__name__}")


def _first_token(processor: object) -> str:
    """The special token a tokenizers post-processor puts first, searched through sequences."""
    if not isinstance(processor, Mapping):
        return ""
    single = processor.get("single")
    first = single[0] if isinstance(single, list) and single else {}
    special = first.get("SpecialToken") if isinstance(first, Mapping) else None
    if processor.get("type") == "TemplateProcessing" and isinstance(special, Mapping):
        return str(special.get("id", ""))
    parts = processor.get("processors")
    return next(filter(None, map(_first_token, parts if isinstance(parts, list) else [])), "")


def _content(token: object) -> str:
    """A token written as text or as {"content": ...}; "" when it is neither."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""
