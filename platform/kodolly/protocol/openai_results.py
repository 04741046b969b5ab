"""OpenAI's wire: what a client gets. The shapes of the OpenAPI document.

Answers to completions come from the engine and are passed on as they are, with whatever fields it
adds; these models name the fields that every engine's answer has.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class ErrorDetail(BaseModel):
    """What is wrong; `param` names the request's field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """Body of every answer with a 4XX or 5XX status."""

    error: ErrorDetail


class ModelCard(BaseModel):
    """A model with a ready worker, or another name of one.

    `max_model_len`: tokens of prompt and answer together. `workers`: how many there are. `root`: the
    model that an alias stands for, else the model itself. `parent`: the base of a LoRA adapter.
    `capabilities`: what each of its workers does, of chat, completions, embeddings, tools and
    structured_outputs; null if they do not say.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "kodolly"
    max_model_len: int | None
    workers: int
    root: str
    parent: str | None
    aliases: list[str]
    capabilities: list[str] | None
    defaults: dict[str, Any]


class ModelList(BaseModel):
    """Body of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Usage(BaseModel):
    """Tokens that were read and made."""

    model_config = ConfigDict(extra="allow")

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerMessage(BaseModel):
    """The assistant's message."""

    model_config = ConfigDict(extra="allow")

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(BaseModel):
    """One of `n` answers to a chat."""

    model_config = ConfigDict(extra="allow")

    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None = None
    finish_reason: str


class ChatCompletion(BaseModel):
    """A whole answer to POST /v1/chat/completions."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    """One of the answers to a completion."""

    model_config = ConfigDict(extra="allow")

    index: int
    text: str
    logprobs: dict[str, Any] | None = None
    finish_reason: str


class TextCompletion(BaseModel):
    """A whole answer to POST /v1/completions."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
