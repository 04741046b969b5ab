"""Text to tokens and back, by the tokenizer and chat template of a model directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kodolly.errors import BadRequest, EngineStartError

# Sampling parameters that generation_config.json may set for requests that do not.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Text:
    """One model's tokenizer. Not thread-safe: encoding changes its state."""

    def __init__(self, directory: Path, template: str | None = None) -> None:
        """`template`: a Jinja template instead of the model's own. Raises EngineStartError."""
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
        """Token ids of plain text. `special`: with the special tokens that the tokenizer adds."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt of a chat, by the chat template, which writes all special tokens itself.

        `add_generation_prompt`: the prompt ends with the beginning of an assistant's turn.
        `continue_final_message`: the last message's turn stays open. Raises BadRequest when the
        template refuses the messages.
        """
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise BadRequest(f"the chat template refused: {error}", param="messages") from error
        return text

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """The text of token ids. `special`: with special tokens, such as the end of a turn."""
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return text


def generation_defaults(directory: Path) -> tuple[frozenset[int], dict[str, Any]]:
    """End-of-answer token ids and default sampling parameters from generation_config.json, if any.

    Raises EngineStartError for a file that cannot be read.
    """
    path = directory / "generation_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return frozenset(), {}
    except (OSError, ValueError) as error:
        raise EngineStartError(f"cannot read {path}: {error}") from error
    ends = config.get("eos_token_id")
    ids = [ends] if isinstance(ends, int) else ends or []
    sampling = {name: config[name] for name in SAMPLING if config.get(name) is not None}
    return frozenset(ids), sampling
