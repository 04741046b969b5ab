"""Chooses the next token of one row: penalties, then temperature, then top-k, top-p and min-p.

Every request that `schema` accepts gets a token. If its values make logits overflow, those become
the largest float; NaN becomes the smallest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

SHORTLIST = 512  # top-p first tries only so many tokens, the most likely; sorting all is slow


class NothingAllowed(Exception):
    """The values of a request contradict each other: no token may come next."""


@dataclass(frozen=True)
class SamplingParams:
    """The sampling parameters of an answer; names and meanings are vLLM's."""

    max_tokens: int
    temperature: float = 1.0  # 0: always the most likely token
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: no limit
    min_p: float = 0.0  # as a share of the most likely token's probability
    repetition_penalty: float = 1.0  # over prompt and answer
    presence_penalty: float = 0.0  # over the answer
    frequency_penalty: float = 0.0  # over the answer, per occurrence
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()  # none: all of them
    bad_words: tuple[tuple[int, ...], ...] = ()  # token ids that may not follow each other
    seed: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    logprobs: int | None = None  # alternatives of each token; None: no log probabilities
    prompt_logprobs: int | None = None  # the same for the prompt's tokens
    forced: tuple[int, ...] = ()  # the answer begins with these tokens, whatever is drawn

    @property
    def plain(self) -> bool:
        """Whether the next token is simply the one with the largest logit."""
        return (
            self.temperature == 0
            and self.repetition_penalty == 1
            and not (self.presence_penalty or self.frequency_penalty or self.logit_bias)
            and not (self.allowed_token_ids or self.bad_words)
        )

    @cached_property
    def bias(self) -> tuple[Any, Any]:
        """`logit_bias` as two tensors, made once since it may name the whole vocabulary: ids, values."""
        import torch

        return torch.tensor([*self.logit_bias]), torch.tensor([*self.logit_bias.values()])


def adjust(
    logits: Any,
    params: SamplingParams,
    prompt: Sequence[int],
    output: Sequence[int],
    forbidden: Any = None,
    allowed: Any = None,
) -> Any:
    """A new tensor with the logits (V,) after bias and penalties: finite, but -inf for `forbidden`.

    `prompt`, `output`: token ids so far. `forbidden`: a tensor of token ids, not the whole vocabulary.
    `allowed`: a tensor (V,), false for tokens that are forbidden too. Raises NothingAllowed.
    """
    import torch

    logits = logits.clone()
    if params.logit_bias:
        token_ids, values = (part.to(logits.device) for part in params.bias)
        logits[token_ids] += values
    if params.repetition_penalty != 1:
        token_ids = torch.tensor(sorted({*prompt, *output}), device=logits.device)
        values = logits[token_ids]
        penalty = params.repetition_penalty
        logits[token_ids] = torch.where(values > 0, values / penalty, values * penalty)
    if output and (params.presence_penalty or params.frequency_penalty):
        counts = torch.bincount(
            torch.tensor(output, device=logits.device), minlength=logits.shape[0]
        )
        logits -= params.frequency_penalty * counts
        logits -= params.presence_penalty * (counts > 0)
    lowest = torch.finfo(logits.dtype).min
    logits = torch.nan_to_num(
        logits, nan=lowest
    )  # infinities become the largest and smallest float
    if forbidden is not None:
        logits[forbidden.to(logits.device)] = float("-inf")
    if allowed is not None:
        logits.masked_fill_(~allowed.to(logits.device), float("-inf"))
    if (allowed is not None or params.bad_words) and logits.max() == float("-inf"):
        raise NothingAllowed("the request's own values leave no token that may come next")
    return logits


def draw(logits: Any, params: SamplingParams, generator: Any) -> int:
    """Draws a token id from adjusted logits (V,). `generator`: this row's own random generator."""
    import torch

    if params.temperature == 0:
        return int(logits.argmax())
    # With the largest logit at 0, a tiny temperature makes -inf of the others, but never inf or NaN.
    logits = (logits - logits.max()) / params.temperature
    ids, share = _candidates(logits, params)
    keep = share.cumsum(-1) - share < params.top_p  # the token that crosses top_p stays
    keep &= share >= params.min_p * share[0]
    keep[0] = True
    share = torch.where(keep, share, 0.0)
    return int(ids[torch.multinomial(share, 1, generator=generator)])


def _candidates(logits: Any, params: SamplingParams) -> tuple[Any, Any]:
    """Token ids, most likely first, and their probabilities; as many as the parameters can allow."""
    import torch

    size = logits.shape[0]
    if params.top_k > 0:
        values, ids = torch.topk(logits, min(params.top_k, size))
        return ids, torch.softmax(values, dim=-1)
    if params.top_p < 1 and size > SHORTLIST:
        values, ids = torch.topk(logits, SHORTLIST)
        share = torch.exp(values - torch.logsumexp(logits, 0))
        if share.sum() >= params.top_p:
            return ids, share
    values, ids = torch.sort(logits, descending=True)
    return ids, torch.softmax(values, dim=-1)
