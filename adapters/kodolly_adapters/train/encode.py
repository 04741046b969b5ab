"""Dialogues to token ids, which of them are learned (exact to the token), and how too long ones are cut."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any

from kodolly_adapters.errors import DataError, RecipeError
from kodolly_adapters.word_cache import WordCache
from kodolly_templates.definition import Template
from kodolly_templates.errors import TemplateError
from kodolly_templates.guard import is_key
from kodolly_templates.messages import Messages, read_dialogue
from kodolly_templates.tokenizer import TokenizerTemplate
from kodolly_templates.training import TrainingText

from .rows import Row

IGNORED = -100  # the label of a token that is not learned, torch's own
GAP = " … "  # stands for what is gone from the middle of an instruction
CHARACTERS = 4  # a token, at the first guess of how much of a text must be tokenized

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of shape (tokens,) and the half-open ranges of them that are learned, in order."""

    ids: list[int]
    learned: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def learned_count(self) -> int:
        """How many tokens are learned."""
        return sum(end - start for start, end in self.learned)


class Encoder:
    """Dialogues of one template to tokens of one tokenizer, as tokenizer.load_tokenizer gives it.

    A text begins with what the tokenizer itself puts before one (`bos`), since the served prompt does: training
    ids are the served prompt's ids, then the answer's. `eos` is the end token. Special tokens of the tokenizer
    are guarded: no row can forge one.
    """

    def __init__(self, tokenizer: Any, template: Template | TokenizerTemplate) -> None:
        from tokenizers import Tokenizer

        # A copy: the caller's tokenizer keeps its padding and truncation.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._words = WordCache.of(self._backend.to_str(), self._ids)
        text = self._backend.encode("가", add_special_tokens=True)
        self.bos_ids = text.ids[: sum(takewhile(bool, text.special_tokens_mask))]
        self.bos = "".join(self._backend.id_to_token(token) or "" for token in self.bos_ids)
        self.eos, self.eos_id = str(tokenizer.eos_token), int(tokenizer.eos_token_id)
        self._template = guarded(template, tokenizer)

    @property
    def definition(self) -> str:
        """Everything that decides texts and ids, for the cache's key."""
        template = f"{self._template!r} {self._template.jinja()}"
        return f"{self._backend.to_str()}{self.bos}{self.eos}{template}"

    def text(self, messages: Messages) -> TrainingText:
        """The training text of a dialogue. Raises TemplateError naming the message that is out of order."""
        if isinstance(self._template, TokenizerTemplate):  # writes its own bos
            return self._template.training(self._template.flatten(messages), self.eos)
        training = self._template.training(messages, self.eos)
        shift = len(self.bos)
        spans = tuple((start + shift, end + shift) for start, end in training.spans)
        return TrainingText(self.bos + training.text, spans)

    def encode(self, texts: Sequence[TrainingText]) -> list[Tokens]:
        """Ids and learned ranges of every text; a bos must be in the text already."""
        results: list[Tokens | None] = [None] * len(texts)
        if self._words is not None:
            borders = [list(chain.from_iterable(text.spans)) for text in texts]
            for number, pair in enumerate(self._words.tokens([t.text for t in texts], borders)):
                if pair is not None:
                    ids, ends = pair
                    results[number] = Tokens(ids, list(zip(ends[::2], ends[1::2], strict=True)))
        rest = [number for number, tokens in enumerate(results) if tokens is None]
        encodings = self._batch([texts[number].text for number in rest])
        for number, encoding in zip(rest, encodings, strict=True):
            spans = [_range(encoding, *span) for span in texts[number].spans]
            results[number] = Tokens(encoding.ids, spans)
        return [tokens for tokens in results if tokens is not None]

    def encode_dialogue(self, messages: Messages) -> Tokens:
        """One dialogue's tokens. Raises TemplateError."""
        return self.encode([self.text(messages)])[0]

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of every text, in which a special token's name (an HTML `</s>`) is text as any other."""
        self._backend.encode_special_tokens = True
        try:
            return self._ids(texts)
        finally:
            self._backend.encode_special_tokens = False

    def starts(self, text: str) -> list[int]:
        """The character at which each token of the text begins."""
        return [start for start, _ in self._batch([text])[0].offsets]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._batch(texts)]

    def _batch(self, texts: Sequence[str]) -> list[Any]:
        return self._backend.encode_batch(list(texts), add_special_tokens=False)

    def row_text(self, row: Row) -> TrainingText:
        """A row's training text. Raises DataError naming file and line, or RecipeError with the base's own chat template."""
        try:
            return self.text(row.messages)
        except TemplateError as error:
            place = f"{row.file}:{row.line}: {error}"
        if isinstance(self._template, TokenizerTemplate):  # the row or the template may be at fault
            raise RecipeError(
                f'template = "{self._template.name}" cannot mask {place}. Put the row right, or choose a '
                'dialect, such as "dolly-ko"'
            )
        raise DataError(place)


class Fitter:
    """What becomes of a row that is longer than `limit` tokens.

    In this order, and only as far as needed:
    1. its context is cut from the end;
    2. the oldest exchanges of a dialogue are dropped;
    3. the last instruction is cut in its middle: the question is at its beginning or its end;
    4. it is refused. An answer is never cut: that would teach to stop, or to go on, in mid-sentence.
    What is cut keeps at least an eighth of `limit`, so that a little of it never stands for all.
    """

    def __init__(self, encoder: Encoder, limit: int) -> None:
        self._encoder = encoder
        self._limit = limit
        self._least = max(1, limit // 8)

    def fit(self, messages: list[Message]) -> tuple[str, Tokens | None]:
        """(name in dataset.OUTCOMES, tokens of what is left or None) of a valid dialogue that does not fit."""
        dialogue = read_dialogue(messages)
        first = dialogue.turns[0].messages[0]
        later = [turn.messages[0] for turn in dialogue.turns[1:] if not turn.is_answer]
        starts = [first, *later]  # of exchanges; the first has what stands before it

        def rest(dropped: int) -> list[Message]:
            return messages[:first] + messages[starts[dropped] :]

        dropped = bisect_left(
            range(len(starts)),
            True,
            key=lambda count: self._length(self._least_contexts(rest(count))) <= self._limit,
        )
        if dropped < len(starts):
            outcome = "turns-dropped" if dropped else "context-cut"
            return outcome, self._encoder.encode_dialogue(self._widened(rest(dropped)))
        last = self._least_contexts(rest(len(starts) - 1))
        user_turns = [index for index, message in enumerate(last) if message["role"] == "user"]
        shorter = (
            self._shortened(last, user_turns[-1], "content", self._without_middle)
            if user_turns
            else None
        )
        if shorter is None:
            return "too-long", None
        return "instruction-cut", self._encoder.encode_dialogue(shorter)

    def _length(self, messages: list[Message]) -> int:
        return len(self._encoder.encode_dialogue(messages))

    def _least_contexts(self, messages: list[Message]) -> list[Message]:
        """Every context cut to the least."""
        return [
            {**message, "context": self._beginning(message["context"], self._least)}
            if "context" in message
            else message
            for message in messages
        ]

    def _widened(self, messages: list[Message]) -> list[Message]:
        """Contexts as long as fits, the newest first; the least of all of them does."""
        left = self._least_contexts(messages)
        for index in reversed(range(len(messages))):
            if "context" in messages[index]:
                whole = [*left[:index], messages[index], *left[index + 1 :]]
                left = self._shortened(whole, index, "context", self._beginning) or left
        return left

    def _shortened(
        self,
        messages: list[Message],
        index: int,
        field: str,
        cut: Callable[[str, int], str],
    ) -> list[Message] | None:
        """The messages with one field cut until all fits, as they are if it does, None if it cannot."""
        if self._length(messages) <= self._limit:
            return messages

        def with_field(tokens: int) -> list[Message]:
            text = cut(messages[index][field], tokens)
            return [*messages[:index], {**messages[index], field: text}, *messages[index + 1 :]]

        keep = self._least + self._limit - self._length(with_field(self._least))
        while keep >= self._least:
            shorter = with_field(keep)
            excess = self._length(shorter) - self._limit
            if excess <= 0:
                return shorter
            keep -= excess
        return None

    def _beginning(self, text: str, tokens: int) -> str:
        """The first `tokens` tokens of the text, cut before a character."""
        length = tokens * CHARACTERS
        # More than one token is looked at beyond: the last of a torn text may be another than the whole's.
        while len(starts := self._encoder.starts(text[:length])) <= tokens + 1:
            if length >= len(text):
                break
            length *= 2
        return text if len(starts) <= tokens else text[: starts[tokens]].rstrip()

    def _without_middle(self, text: str, tokens: int) -> str:
        """The first and last tokens of the text, `tokens` in all with the gap."""
        starts = self._encoder.starts(text)
        if len(starts) <= tokens:
            return text
        room = max(2, tokens - len(self._encoder.starts(GAP)))
        head, tail = room - room // 2, room // 2
        return text[: starts[head]].rstrip() + GAP + text[starts[-tail] :].lstrip()


def guarded(template: Template | TokenizerTemplate, tokenizer: Any) -> Template | TokenizerTemplate:
    """The template with every special token of the tokenizer guarded."""
    added = tokenizer.added_tokens_decoder.values()
    special = [*(token.content for token in added if token.special), *tokenizer.all_special_tokens]
    return template.with_guard([token for token in dict.fromkeys(special) if is_key(token)])


def _range(encoding: Any, first: int, last: int) -> tuple[int, int]:
    """The tokens that lie wholly in the characters first..last.

    A token never begins or ends before the one before it does, so both ends are found by bisection:
    making every offset a Python object costs more than all the rest of the mask.
    """
    tokens, characters = range(len(encoding)), encoding.token_to_chars
    start = bisect_left(tokens, first, key=lambda token: characters(token)[0])
    end = bisect_right(tokens, last, lo=start, key=lambda token: characters(token)[1])
    return start, end
