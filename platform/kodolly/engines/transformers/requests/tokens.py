"""Texts and tokens: POST /tokenize and POST /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from kodolly.engines.transformers.requests.base import EngineRequest, Ids, refuse
from kodolly.engines.transformers.requests.chat import MAX_TOOLS, Message
from kodolly.engines.transformers.tools.choice import Tool
from kodolly.protocol import parameters
from kodolly.protocol.openai import MAX_MESSAGES


class TokenizeRequest(EngineRequest):
    """POST /tokenize: a prompt, or the messages of a chat."""

    unhonoured = parameters.TOKENIZE

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    return_token_strs: bool = False

    @model_validator(mode="before")
    @classmethod
    def _check_final_message(cls, data: dict[str, Any]) -> dict[str, Any]:
        if data.get("continue_final_message") and data.get("add_generation_prompt"):
            refuse("continue_final_message", "needs add_generation_prompt to be false")
        return data

    @model_validator(mode="after")
    def _require_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            refuse("prompt", "or messages must be given, and not both")
        return self


class DetokenizeRequest(EngineRequest):
    """POST /detokenize."""

    model: str | None = None
    tokens: Ids
