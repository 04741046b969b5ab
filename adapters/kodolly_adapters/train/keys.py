"""Keys that are tokens of their own: added to the tokenizer, given rows, and never left untrained.

LoRA freezes the embeddings. Rows added for new tokens would stay as random as they were made: the model could
neither read its own keys nor write the one that ends an answer. That was the study's flaw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kodolly_adapters.errors import RecipeError
from kodolly_templates import Template, TokenizerTemplate

from .model import output_embeddings
from .recipe import Recipe

ROUND_TO = 64  # rows of a grown embedding, for tensor cores and tensor parallelism
NOISE = 0.1  # of the deviation of the known rows


def add_keys(
    tokenizer: Any, template: Template | TokenizerTemplate, recipe: Recipe
) -> tuple[int, ...]:
    """Add the template's special tokens; returns the ids of those that were new.

    Raises RecipeError naming the tokens when the recipe would leave their rows untrained.
    """
    known = tokenizer.get_vocab()
    new = [token for token in template.special_tokens if token not in known]
    if recipe.data.format != "rows" or not new:
        return ()
    if recipe.method != "full" and not recipe.lora.train_new_tokens:
        names = ", ".join(map(repr, new))
        raise RecipeError(
            f"lora.train_new_tokens = false: the template {template.name} adds {names} to the vocabulary, "
            "and their rows would stay random: the model could neither know its keys nor stop. Set it to "
            'true, or use a template whose keys are plain text, such as "dolly-ko" or "dolly-v2"'
        )
    tokenizer.add_special_tokens({"extra_special_tokens": new}, replace_extra_special_tokens=False)
    return tuple(tokenizer.convert_tokens_to_ids(new))


def grow(model: Any, tokenizer: Any, new_ids: Sequence[int], seed: int) -> int:
    """Give every token a row, and those of `new_ids` a start; returns the number of rows.

    Never takes rows away: Polyglot has 30,080 for 30,003 tokens. A new row starts at the mean of the known ones
    with a little noise, the same for the same seed.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > rows:
        wanted = -(-len(tokenizer) // ROUND_TO) * ROUND_TO
        model.resize_token_embeddings(wanted, mean_resizing=False)
    total = int(model.get_input_embeddings().weight.shape[0])
    if fresh := sorted({*new_ids, *range(rows, total)}):
        for shift, layer in enumerate([model.get_input_embeddings(), output_embeddings(model)]):
            if layer is not None:
                _start(layer.weight, fresh, seed + shift)
    return total


def check_trained(model: Any, tokenizer: Any, new_ids: Sequence[int]) -> None:
    """Raise RecipeError when a row of `new_ids` would not be trained: the last look before training."""
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is None or not new_ids:
            continue
        chosen = getattr(layer, "token_indices", {})
        trained = {i for ids in chosen.values() for i in ids}
        if layer.weight.requires_grad and not chosen:  # the whole matrix
            continue
        if frozen := sorted(set(new_ids) - trained):
            names = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(frozen)))
            raise RecipeError(f"rows of new tokens would stay untrained: {names}")


def _start(weight: Any, fresh: Sequence[int], seed: int) -> None:
    """Fill rows `fresh` (ascending) of `weight` (vocabulary, hidden) from the rows before the first."""
    import torch

    with torch.no_grad():
        rows = weight[: fresh[0]].float()
        mean, deviation = rows.mean(dim=0), rows.std(dim=0)
        source = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(fresh), rows.shape[1], generator=source).to(rows.device)
        weight[list(fresh)] = (mean + NOISE * deviation * noise).to(weight.dtype)
