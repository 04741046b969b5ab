"""The base's tokenizer, with the traps of the study's models repaired and the template's own tokens added.

Polyglot and Pythia: token_type_ids, which generation refuses. Polyglot's first uploads: a padding token that is
misspelt, and would silently become a new row. decapoda's LLaMA: empty names for its special tokens, so that no
answer ever ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from kodolly_adapters.errors import BaseError, RecipeError, first_line
from kodolly_templates import Template, TokenizerTemplate

from .recipe import Recipe

NO_END = ("", "<unk>")  # eos_token of uploads that have lost LLaMA's end
ENDS = ("<|endoftext|>", "</s>")  # what GPT-NeoX's and LLaMA's tokenizers call the end of a text
LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}  # ids 0, 1, 2
MOST_NEW_ROWS = 1000  # tokens without a row; with more it is another model's tokenizer
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(recipe: Recipe) -> tuple[Any, tuple[str, ...]]:
    """(the base's fast tokenizer, what had to be repaired in it).

    It has an end token, a padding token, and no token that the base does not have. Raises BaseError where there is
    none, or none that can mark the end of an answer.
    """
    tokenizer = _open(recipe, {})
    names = {role: getattr(tokenizer, role) for role in ROLES}
    fixes = _fixes(recipe, tokenizer, names)
    if fixes:
        tokenizer = _open(recipe, fixes)
    repairs = [
        f"{role} {names[role]!r} is in no vocabulary; {token!r} is used"
        for role, token in fixes.items()
    ]
    repairs += _fix_llama(tokenizer)
    end = tokenizer.eos_token
    if (end or "") in NO_END or tokenizer.eos_token_id is None:
        raise BaseError(
            f"base {recipe.base}: its tokenizer names no end token (eos_token {end!r}), so no answer could "
            'end. Name one in tokenizer_config.json, for example "eos_token": "</s>"'
        )
    if tokenizer.pad_token is None or tokenizer.pad_token_id is None:
        tokenizer.pad_token = end  # labels mask the padding, so the end is still learned
        repairs.append(f"no padding token; {end!r} is used")
    if "token_type_ids" in tokenizer.model_input_names:
        inputs = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
        tokenizer.model_input_names = inputs
        repairs.append("token_type_ids, which the model does not read, are left out")
    return tokenizer, tuple(repairs)


def add_template_tokens(
    tokenizer: Any, template: Template | TokenizerTemplate, recipe: Recipe, rows: int
) -> tuple[int, ...]:
    """Add the template's special tokens; returns ascending ids of what the base does not know.

    These are the tokens that were added, and all for which the base has none of its `rows` of embeddings, such as
    a padding token that somebody added. Raises RecipeError where the recipe would leave them untrained, BaseError
    for a tokenizer that is another model's.
    """
    vocabulary = tokenizer.get_vocab()
    new = [token for token in template.special_tokens if token not in vocabulary]
    if recipe.data.format != "rows":
        new = []
    if new:
        tokenizer.add_special_tokens(
            {"extra_special_tokens": new}, replace_extra_special_tokens=False
        )
    rowless = range(rows, needed_rows(tokenizer))
    if len(rowless) > MOST_NEW_ROWS and recipe.start == "weights":
        raise BaseError(
            f"base {recipe.base}: tokenizer.json has ids up to {rowless[-1]:,}, the model has {rows:,} rows: is it this "
            "model's? If it is, resize the model's embeddings (resize_token_embeddings) and save it first"
        )
    ids = sorted({*tokenizer.convert_tokens_to_ids(new), *rowless})
    check_rows_are_trained(recipe, tokenizer, ids)
    return tuple(ids)


def needed_rows(tokenizer: Any) -> int:
    """How many rows of embeddings its ids need: more than it has tokens where ids are left out."""
    return int(max(tokenizer.get_vocab().values())) + 1


def check_rows_are_trained(recipe: Recipe, tokenizer: Any, ids: Sequence[int]) -> None:
    """Raise RecipeError where the recipe would leave the rows of these tokens as the base has, or has not, them."""
    if not ids or recipe.method == "full" or recipe.lora.train_new_tokens:
        return
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    names = ", ".join(repr(token) for token in tokens if token is not None)
    raise RecipeError(
        f"lora.train_new_tokens = false: the base {recipe.base} was not trained on {names} of its tokenizer and the "
        f"template {recipe.template}, and their rows would stay random: the model could neither know its keys nor "
        'stop. Set it to true, or use a template whose keys are plain text, such as "dolly-ko" or "dolly-v2"'
    )


def _open(recipe: Recipe, fixes: Mapping[str, str | None]) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            recipe.base, revision=recipe.revision, trust_remote_code=False, **fixes
        )
    except Exception as error:  # noqa: BLE001 - its readers raise whatever the file made them raise
        raise BaseError(f"base {recipe.base}: no tokenizer: {first_line(error)}") from None
    if not tokenizer.is_fast:
        raise BaseError(
            f"base {recipe.base}: its tokenizer has no tokenizer.json, which the response mask needs"
        )
    return tokenizer


def _fixes(
    recipe: Recipe, tokenizer: Any, names: Mapping[str, str | None]
) -> dict[str, str | None]:
    """What to call named tokens that the vocabulary does not hold: {role: token, or None for none}."""
    try:
        file = cached_file(recipe.base, "tokenizer.json", revision=recipe.revision)
    except OSError:
        return {}
    vocabulary = Tokenizer.from_file(str(file))
    # Where the older special_tokens_map.json wins, tokenizer_config.json may still name the true end.
    own = get_tokenizer_config(recipe.base, revision=recipe.revision).get("eos_token") or ""
    own = own["content"] if isinstance(own, dict) else own
    ends = [own, *ENDS] if own not in NO_END else ENDS
    end = next((token for token in ends if vocabulary.token_to_id(token) is not None), None)
    fixes: dict[str, str | None] = {
        role: end if role in {"eos_token", "pad_token"} else None
        for role, token in names.items()
        if token and vocabulary.token_to_id(token) is None
    }
    if "pad_token" in fixes and "eos_token" not in fixes:
        fixes["pad_token"] = tokenizer.eos_token or end
    return fixes


def _fix_llama(tokenizer: Any) -> list[str]:
    """Give LLaMA's special tokens their names where the upload lost them, by the ids they always have."""
    if tokenizer.convert_ids_to_tokens([0, 1, 2]) != list(LLAMA_TOKENS.values()):
        return []
    wrong = {
        role: getattr(tokenizer, role)
        for role, token in LLAMA_TOKENS.items()
        if (getattr(tokenizer, role) or "") in NO_END and token != getattr(tokenizer, role)
    }
    if "eos_token" not in wrong:
        return []
    for role in wrong:
        setattr(tokenizer, role, LLAMA_TOKENS[role])
    tokenizer.add_bos_token = True  # as LLaMA was trained; it was off for want of a name
    tokenizer.update_post_processor()
    pairs = ", ".join(f"{role} {old!r} is {LLAMA_TOKENS[role]!r}" for role, old in wrong.items())
    return [f"LLaMA's marks have lost their names: {pairs}"]
