"""The training rendering: the whole conversation as text, and which of it is learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .dialect import Dialect
from .errors import TemplateError
from .messages import SEPARATOR, Messages


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A text and the half-open character ranges of it that a model learns to write."""

    text: str
    spans: tuple[tuple[int, int], ...]

    def encode(
        self, tokenizer: Any, *, add_special_tokens: bool = True
    ) -> tuple[list[int], list[bool]]:
        """(token ids, learned flags), both of shape (tokens,).

        `tokenizer` is a fast transformers tokenizer. A token is learned when it lies wholly inside a span;
        special tokens the tokenizer adds around the text lie at (0, 0) and never are. Pass
        `add_special_tokens=False` for a text that holds its bos already.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise TemplateError("the response mask needs a fast tokenizer (offset mapping)")
        encoded = tokenizer(
            self.text, add_special_tokens=add_special_tokens, return_offsets_mapping=True
        )
        learned = [self._covers(start, end) for start, end in encoded["offset_mapping"]]
        return list(encoded["input_ids"]), learned

    def _covers(self, start: int, end: int) -> bool:
        return any(first <= start and end <= last for first, last in self.spans)


def build_training(template: Dialect, messages: Messages, eos_token: str = "") -> TrainingText:
    """Each response is learned from the end of its generation prompt through its end key.

    `eos_token` follows the last end key only, so that the text before every response stays the generation
    prompt of the messages before it. Raises TemplateError when the last message is not the assistant's.
    """
    dialogue = template.dialogue(messages)
    if not dialogue.ends_with_answer:
        raise TemplateError(f"message {len(messages) - 1}: training needs a response at the end")
    text = template.preamble(dialogue.system)
    spans = []
    for position, turn in enumerate(dialogue.turns):
        text += SEPARATOR if position else ""
        start = len(text) + len(template.response_prompt)
        text += template.turn(turn)
        if turn.is_answer:
            spans.append((start, len(text)))
    if eos_token and not text.endswith(eos_token):
        text += eos_token
        spans[-1] = (spans[-1][0], len(text))
    return TrainingText(text, tuple(spans))
