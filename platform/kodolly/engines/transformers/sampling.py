"""The next token of one row: penalties, then temperature, then what may still be drawn.

Every request that `schema` accepts gets a token, whatever its values do to the logits: numbers that
overflow become the largest float, and what is no number becomes the smallest.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

SHORTLIST = 512  # most likely tokens looked at first: top-p rarely needs the whole vocabulary


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How an answer is drawn; names and meanings are vLLM's."""

    max_tokens: int
    temperature: float = 1.0  # 0: always the most likely token
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: no bound
    min_p: float = 0.0  # of the most likely token's probability
    repetition_penalty: float = 1.0  # over prompt and answer
    presence_penalty: float = 0.0  # over the answer
    frequency_penalty: float = 0.0  # over the answer, per occurrence
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False

    @property
    def plain(self) -> bool:
        """Whether the most likely token of the bare logits is the answer."""
        return (
            self.temperature == 0
            and self.repetition_penalty == 1
            and not (self.presence_penalty or self.frequency_penalty or self.logit_bias)
        )


def adjust(
    logits: Any,
    params: SamplingParams,
    prompt: Sequence[int],
    made: Sequence[int],
    forbidden: Collection[int],
) -> Any:
    """Finite logits (V,) after bias and penalties, but -inf for `forbidden` tokens. A new tensor.

    `forbidden` must leave at least one token of the vocabulary.
    """
    import torch

    logits = logits.clone()
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *made}), device=logits.device)
        values = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if made and (params.presence_penalty or params.frequency_penalty):
        counts = torch.bincount(torch.tensor(made, device=logits.device), minlength=logits.shape[0])
        logits -= params.frequency_penalty * counts
        logits -= params.presence_penalty * (counts > 0)
    lowest = torch.finfo(logits.dtype).min
    logits = torch.nan_to_num(logits, nan=lowest)  # and infinities to the largest and smallest
    if forbidden:
        logits[torch.tensor(sorted(forbidden), device=logits.device)] = float("-inf")
    return logits


def draw(logits: Any, params: SamplingParams, generator: Any) -> int:
    """Draw a token from adjusted logits (V,) with `generator`, this row's own."""
    import torch

    if params.temperature == 0:
        return int(logits.argmax())
    # The largest becomes 0 first: a tiny temperature then makes -inf of the others, never inf or NaN.
    logits = (logits - logits.max()) / params.temperature
    ids, share = _candidates(logits, params)
    keep = share.cumsum(-1) - share < params.top_p  # the token that crosses top_p stays
    keep &= share >= params.min_p * share[0]
    keep[0] = True
    share = torch.where(keep, share, 0.0)
    return int(ids[torch.multinomial(share, 1, generator=generator)])


def _candidates(logits: Any, params: SamplingParams) -> tuple[Any, Any]:
    """Token ids in falling order of probability, and their shares; as many as are needed."""
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
