"""Messages to the training text of a recipe's template, beginning as the server's prompts begin."""

from __future__ import annotations

from typing import Any

from kodolly_adapters.errors import DataError, RecipeError
from kodolly_templates.definition import Template
from kodolly_templates.errors import TemplateError
from kodolly_templates.guard import is_key
from kodolly_templates.messages import Messages, read_dialogue
from kodolly_templates.tokenizer import TokenizerTemplate
from kodolly_templates.training import TrainingText

from .mask import Encoder
from .rows import Row

# A dialogue whose rendering stands for the renderer's code in the cache's key.
SAMPLE = (
    {"role": "user", "content": "무엇?", "context": "글"},
    {"role": "assistant", "content": "답"},
    {"role": "user", "content": "왜?"},
    {"role": "assistant", "content": "그래서"},
)


def guarded(template: Template | TokenizerTemplate, tokenizer: Any) -> Template | TokenizerTemplate:
    """The template with every special token of the tokenizer guarded: no row can forge one."""
    added = tokenizer.added_tokens_decoder.values()
    special = [*(token.content for token in added if token.special), *tokenizer.all_special_tokens]
    return template.with_guard([token for token in dict.fromkeys(special) if is_key(token)])


class Renderer:
    """Training texts of one template with one tokenizer.

    A text begins with what the tokenizer itself puts before one: the server's chat template writes it too,
    and neither adds it a second time. So training ids are the served prompt's ids, then the answer's.
    """

    def __init__(self, template: Template | TokenizerTemplate, encoder: Encoder) -> None:
        self._template = template
        self._bos = "" if isinstance(template, TokenizerTemplate) else encoder.bos
        self._eos = encoder.eos

    @property
    def definition(self) -> str:
        """Everything that decides the texts."""
        try:
            sample = repr(self.text(SAMPLE))
        except TemplateError as error:
            sample = str(error)
        return f"{self._template!r} {sample}"

    def text(self, messages: Messages) -> TrainingText:
        """The training text. Raises TemplateError naming the message that is out of order."""
        if isinstance(self._template, TokenizerTemplate):
            messages = self._template.flatten(messages)
        training = self._template.training(messages, self._eos)
        if not self._bos:
            return training
        moved = tuple(
            (start + len(self._bos), end + len(self._bos)) for start, end in training.spans
        )
        return TrainingText(self._bos + training.text, moved)

    def row(self, row: Row) -> TrainingText:
        """The row's training text.

        Raises DataError where the row is at fault, RecipeError where the model's own chat template is.
        """
        try:
            return self.text(row.messages)
        except TemplateError as error:
            raise self._blamed(row, error) from None

    def _blamed(self, row: Row, error: TemplateError) -> DataError | RecipeError:
        place = f"{row.file}:{row.line}: {error}"
        try:
            is_closed = not read_dialogue(row.messages).is_open
        except TemplateError:
            is_closed = False
        if is_closed and isinstance(self._template, TokenizerTemplate):
            return RecipeError(
                f'template = "{self._template.name}" cannot mask {place}. Choose a dialect, '
                'such as "dolly-ko"'
            )
        return DataError(place)
