"""Requests for embeddings and for a tokenizer's work, and what a client gets.

Embeddings are OpenAI's, /tokenize and /detokenize are vLLM's. Unknown fields go to the engine unchanged.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kodolly.errors import BadRequest
from kodolly.protocol.faults import bad_request
from kodolly.protocol.openai import MAX_MESSAGES, Message, Texts, TokenIds, TokenLists, Tools
from kodolly.protocol.parameters import EMBEDDING_REFUSED, TOKENIZE_REFUSED, refuse_unhonoured


class EmbeddingRequest(BaseModel):
    """Body of POST /v1/embeddings. `input`: one or several texts, as text or as token ids."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(min_length=1, max_length=512)
    input: str | Texts | TokenIds | TokenLists
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, le=2**16)
    user: str | None = None
    truncate_prompt_tokens: int | None = Field(default=None, ge=-1, le=2**20)


class TokenizeRequest(BaseModel):
    """Body of POST /tokenize: either a prompt or a chat."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(min_length=1, max_length=512)
    prompt: str | None = None
    messages: list[Message] | None = Field(
        default=None, min_length=1, max_length=MAX_MESSAGES, fail_fast=True
    )
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: Tools | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(BaseModel):
    """Body of POST /detokenize."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str = Field(min_length=1, max_length=512)
    tokens: TokenIds


R = TypeVar("R", EmbeddingRequest, TokenizeRequest, DetokenizeRequest)


def check_call(cls: type[R], data: dict[str, Any]) -> R:
    """`data` as a `cls`. Raises BadRequest, which names the first wrong field."""
    try:
        request = cls.model_validate(data)
    except ValidationError as error:
        raise bad_request(error, data) from error
    if isinstance(request, EmbeddingRequest):
        _check_input(request.input)
        refuse_unhonoured(data, EMBEDDING_REFUSED, "model's")
    if isinstance(request, TokenizeRequest):
        if (request.prompt is None) == (request.messages is None):
            raise BadRequest("prompt: give either prompt or messages", param="prompt")
        if request.continue_final_message and request.add_generation_prompt:
            raise BadRequest(
                "continue_final_message: not together with add_generation_prompt",
                param="continue_final_message",
            )
        refuse_unhonoured(data, TOKENIZE_REFUSED, "model's")
    return request


def _check_input(texts: str | list[str] | list[int] | list[list[int]]) -> None:
    if texts == [] or (isinstance(texts, list) and [] in texts):
        raise BadRequest("input: holds no text or token", param="input")


class Embedding(BaseModel):
    """One text's vector: numbers, or float32 in little-endian bytes as base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens that were read."""

    model_config = ConfigDict(extra="allow")

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """Body of an answer to POST /v1/embeddings."""

    model_config = ConfigDict(extra="allow")

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Tokens(BaseModel):
    """Body of an answer to POST /tokenize. `max_model_len`: tokens that the model takes at most."""

    model_config = ConfigDict(extra="allow")

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(BaseModel):
    """Body of an answer to POST /detokenize."""

    prompt: str


class Version(BaseModel):
    """Body of GET /version."""

    version: str
