"""Log probabilities of a scripted answer, in vLLM's two shapes: made up, but always the same."""

from collections.abc import Callable
from typing import Any

from support.script import Step

Body = dict[str, Any]
Pieces = Callable[[int], bytes]  # a token id -> its bytes


def wanted(body: Body, chat: bool) -> bool:
    """Whether a request asks for them: `logprobs` is true in a chat, a number in a completion."""
    asked = body.get("logprobs")
    return bool(asked) if chat else asked is not None


def logprob(token_id: int) -> float:
    return -(token_id % 97) / 100


def of_steps(steps: list[Step], pieces: Pieces, *, chat: bool, offset: int = 0) -> Body:
    """The `logprobs` object of some steps; `offset` counts the characters said before them."""
    if chat:
        return {"content": [_entry(step.token_id, pieces(step.token_id)) for step in steps]}
    words = [pieces(step.token_id).decode(errors="replace") for step in steps]
    values = [logprob(step.token_id) for step in steps]
    offsets = []
    for step in steps:
        offsets.append(offset)
        offset += len(step.text)
    return {
        "text_offset": offsets,
        "token_logprobs": values,
        "tokens": words,
        "top_logprobs": [{word: value} for word, value in zip(words, values, strict=True)],
    }


def _entry(token_id: int, piece: bytes) -> Body:
    return {
        "token": piece.decode(errors="replace"),
        "logprob": logprob(token_id),
        "bytes": list(piece),
        "top_logprobs": [],
    }
