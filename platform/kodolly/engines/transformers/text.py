"""Text to tokens and back, by the tokenizer and chat template of a model directory."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from kodolly.engines.transformers.tools.choice import BEGIN, OTHER_FORMS
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
        self.source = str(template or getattr(self._tokenizer, "chat_template", None) or "")

    @cached_property
    def _variables(self) -> frozenset[str]:
        """Names that the template reads, but those which are set for it."""
        from jinja2 import Environment, TemplateError, meta

        try:
            environment = Environment(autoescape=False, extensions=["jinja2.ext.loopcontrols"])
            names = meta.find_undeclared_variables(environment.parse(self.source))
        except TemplateError:  # tags of transformers' own, such as {% generation %}
            names = set(re.findall(r"[A-Za-z_]\w*", self.source))
        own = inspect.signature(self._tokenizer.apply_chat_template).parameters
        return frozenset(names - own.keys() - {"messages", *self._tokenizer.special_tokens_map})

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers itself."""
        return self._tokenizer

    @property
    def reads_calls(self) -> bool:
        """Whether the chat template has a place for tools, and calls them as `tools.parser` reads it."""
        has_tools = "tools" in self.source and BEGIN in self.source
        return has_tools and not any(form in self.source for form in OTHER_FORMS)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of plain text. `special`: with the special tokens that the tokenizer adds."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return ids

    def chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt of a chat, by the chat template, which writes all special tokens itself.

        `tools`: what the answer may call. `variables`: of the template itself, such as enable_thinking;
        one that it does not have changes nothing.
        `add_generation_prompt`: the prompt ends with the beginning of an assistant's turn.
        `continue_final_message`: the last message's turn stays open. Raises BadRequest when the
        template refuses the messages.
        """
        from jinja2 import TemplateError

        own = {name: each for name, each in (variables or {}).items() if name in self._variables}
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                **own,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise BadRequest(f"the chat template refused: {error}", param="messages") from error
        return text

    def pieces(self, ids: list[int]) -> list[str]:
        """Tokens as the vocabulary spells them."""
        pieces: list[str] = self._tokenizer.convert_ids_to_tokens(ids)
        return [piece or "" for piece in pieces]

    def word(self, word: str) -> list[tuple[int, ...]]:
        """Token ids of a word at the beginning of a text, and after a space where that differs, as vLLM's."""
        plain = self.encode(word.lstrip(), special=False)
        spaced = self.encode(" " + word.lstrip(), special=False)
        differs = spaced and plain and spaced[0] != plain[0] and len(spaced) == len(plain)
        return [tuple(ids) for ids in ([plain, spaced] if differs else [plain]) if ids]

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
