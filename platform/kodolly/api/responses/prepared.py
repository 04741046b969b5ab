"""A checked request for a response: its input, what it asks the model, and what it will look like."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from kodolly.api.request import ApiRequest
from kodolly.api.responses.ids import RESPONSE, new_id
from kodolly.api.responses.request import ResponseRequest
from kodolly.api.responses.result import base_response
from kodolly.api.responses.to_chat import chat_body, in_terms_of_responses
from kodolly.errors import BadRequest
from kodolly.observe.requests import Measurement
from kodolly.protocol.openai import ChatRequest, check
from kodolly.protocol.request_bounds import check_bounds

Json = dict[str, Any]
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Prepared:
    """`base`: the response object before anything has come. `chat`: the request that answers it."""

    request: ResponseRequest
    base: Json
    chat: ApiRequest

    @property
    def id(self) -> str:
        """The response's id."""
        return str(self.base["id"])


def prepare(
    request: ResponseRequest,
    items: list[Json],
    request_id: str,
    *,
    store: bool,
    size: int = 0,
    response_id: str | None = None,
    created_at: float | None = None,
    measurement: Measurement | None = None,
) -> Prepared:
    """Prepares a response. `items`: all input, earlier turns first; `size`: bytes of the body.

    `response_id`, `created_at`: of a response that exists already. `measurement`: of the client's request,
    if there is one. Raises BadRequest.
    """
    response_id = response_id or new_id(RESPONSE)
    base = base_response(request, response_id, int(created_at or time.time()), store=store)
    body = chat_body(request, items)
    try:
        check(ChatRequest, body)
        check_bounds(body)
    except BadRequest as error:
        raise in_terms_of_responses(error) from error
    # Of a stored response the next process has to use the same one.
    own_id = response_id if store else request_id
    chat = ApiRequest(CHAT, body, own_id, True, size, measurement or Measurement())
    return Prepared(request, base, chat)
