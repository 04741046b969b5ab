"""Text to tokens and back: the tokenizer and chat template of a model directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kodolly.errors import BadRequest, EngineStartError

# What generation_config.json may say about drawing when the request does not.
DRAWING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Text:
    """One model's tokenizer. Not for two threads at once: encoding changes its inner state."""

    def __init__(self, directory: Path, template: str | None = None) -> None:
        """`template`: Jinja text that replaces the model's own chat template."""
        from transformers import AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise EngineStartError(f"cannot load the tokenizer of {directory}: {error}") from error
        self._template = template
        self.end = self._tokenizer.eos_token_id

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of plain text, with the marks the tokenizer adds if `special`."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids

    def encode_chat(
        self, messages: Sequence[dict[str, str]], *, opened: bool = True, going_on: bool = False
    ) -> list[int]:
        """Tokens of a chat as the template writes it.

        `opened`: with the assistant's turn opened at the end; `going_on`: the last message is
        not closed. Raises BadRequest when the template refuses the messages.
        """
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template,
                add_generation_prompt=opened,
                continue_final_message=going_on,
                tokenize=False,
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise BadRequest(f"the chat template refused: {error}", param="messages") from error
        # The template writes every mark itself, as it wants them.
        return self.encode(text, special=False)

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """Text of tokens; marks such as the end of turn only if `special`."""
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text


def generation_defaults(directory: Path) -> tuple[frozenset[int], dict[str, Any]]:
    """End-of-answer tokens and sampling defaults out of generation_config.json, if it is there."""
    path = directory / "generation_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return frozenset(), {}
    except (OSError, ValueError) as error:
        raise EngineStartError(f"cannot read {path}: {error}") from error
    ends = config.get("eos_token_id")
    ids = [ends] if isinstance(ends, int) else ends or []
    drawing = {name: config[name] for name in DRAWING if config.get(name) is not None}
    return frozenset(ids), drawing
