"""Log probabilities of tokens: computed from logits, and written in the forms of OpenAI and vLLM.

They are those of the model itself, before temperature, penalties, bias and grammars, as vLLM's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kodolly.engines.transformers.detokenize import REPLACEMENT, Decode

LOWEST = -9999.0  # what OpenAI's API writes for minus infinity
CHARACTER = 4  # tokens at most that make one character

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Score:
    """One token's log probability. `rank`: 1 for the most likely. `top`: the most likely ones."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]

    @property
    def entries(self) -> dict[int, tuple[float, int]]:
        """Token ids, this one first and then the most likely, with log probability and rank."""
        most = {token: (value, rank) for rank, (token, value) in enumerate(self.top, start=1)}
        return {self.token: (self.logprob, self.rank)} | most


def scores(logits: Any, tokens: Sequence[int], count: int) -> list[Score]:
    """The scores of `tokens` (N) by the logits (N, V) before each, with `count` most likely ones."""
    import torch

    if not tokens:
        return []
    logits = torch.nan_to_num(logits, nan=torch.finfo(logits.dtype).min)
    values = torch.log_softmax(logits, dim=-1)
    chosen = values.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    ranks = (values > chosen).sum(-1) + 1
    top, ids = torch.topk(values, min(count, values.shape[1]), dim=-1)
    return [
        Score(token, max(value, LOWEST), rank, tuple(zip(best, _bounded(most), strict=True)))
        for token, value, rank, best, most in zip(
            tokens, chosen[:, 0].tolist(), ranks.tolist(), ids.tolist(), top.tolist(), strict=True
        )
    ]


def _bounded(values: list[float]) -> list[float]:
    return [max(value, LOWEST) for value in values]


class TokenTexts:
    """The text of single tokens."""

    def __init__(self, decode: Decode) -> None:
        """`decode`: with special tokens."""
        self._decode = decode
        self._texts: dict[int, str] = {}

    def text(self, token: int, before: Sequence[int]) -> str:
        """The text of a token. One that ends inside a character has none; that which completes it has it all.

        `before`: the tokens before it.
        """
        if (text := self._texts.get(token)) is None:
            text = self._texts[token] = self._decode([token])
        if REPLACEMENT not in text:
            return text
        for count in range(1, min(CHARACTER, len(before)) + 1):
            context = list(before[-count:])
            whole = self._decode([*context, token])
            if REPLACEMENT not in whole:
                return whole[len(self._decode(context).rstrip(REPLACEMENT)) :]
        return text.rstrip(REPLACEMENT)


class LogprobWriter:
    """Writes the scores of one choice, in order, in the form of its endpoint."""

    def __init__(self, texts: TokenTexts, *, chat: bool, count: int, ids: bool) -> None:
        """`count`: alternatives a token. `ids`: tokens are written as "token_id:7" instead of text."""
        self._texts = texts
        self._chat = chat
        self._count = count
        self._ids = ids
        self._before: list[int] = []
        self._offset = 0

    def write(self, tokens: Sequence[int], values: Sequence[Score | None]) -> Json:
        """The field `logprobs` for the next tokens; None as score of a prompt's first token."""
        return self._chat_form(values) if self._chat else self._completion_form(tokens, values)

    def _chat_form(self, values: Sequence[Score | None]) -> Json:
        content = []
        for score in values:
            assert score is not None
            top = [self._entry(token, value) for token, (value, _) in score.entries.items()]
            entry = self._entry(score.token, score.logprob)
            content.append(entry | {"top_logprobs": top[: self._count]})
            self._next(score.token)
        return {"content": content}

    def _entry(self, token: int, value: float) -> Json:
        text = self._text(token)
        return {"token": text, "logprob": value, "bytes": list(text.encode())}

    def _completion_form(self, tokens: Sequence[int], values: Sequence[Score | None]) -> Json:
        form: Json = {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}
        for token, score in zip(tokens, values, strict=True):
            text = self._text(token)
            top = None
            if score is not None:
                top = {self._text(each): value for each, (value, _) in score.entries.items()}
            form["text_offset"].append(self._offset)
            form["token_logprobs"].append(None if score is None else score.logprob)
            form["tokens"].append(text)
            form["top_logprobs"].append(top)
            self._offset += len(text)
            self._next(token)
        return form

    def _text(self, token: int) -> str:
        return f"token_id:{token}" if self._ids else self._texts.text(token, self._before)

    def _next(self, token: int) -> None:
        self._before = [*self._before[1 - CHARACTER :], token]


def prompt_form(texts: TokenTexts, prompt: Sequence[int], values: Sequence[Score | None]) -> Any:
    """vLLM's field `prompt_logprobs`: for each token of the prompt but the first, itself and the most likely."""
    form: list[Json | None] = []
    for index, score in enumerate(values):
        if score is None:
            form.append(None)
            continue
        before = prompt[max(0, index - CHARACTER) : index]
        form.append(
            {
                str(token): {
                    "logprob": value,
                    "rank": rank,
                    "decoded_token": texts.text(token, before),
                }
                for token, (value, rank) in score.entries.items()
            }
        )
    return form
