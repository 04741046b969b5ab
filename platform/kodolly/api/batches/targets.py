"""The endpoints that a batch may name, and how each answers one request whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from kodolly.api.batches.runner import Target
from kodolly.api.relay.client_stream import ClientStream
from kodolly.api.request import EMBEDDINGS, ApiRequest
from kodolly.api.responses.events import EventMachine
from kodolly.api.responses.prepared import prepare
from kodolly.api.responses.request import check_request
from kodolly.api.responses.stored.history import History
from kodolly.api.responses.to_chat import in_terms_of_responses, input_items
from kodolly.api.responses.writer import ResponseWriter
from kodolly.api.runner import CompletionRunner
from kodolly.errors import ApiError, BadRequest, EngineFailed
from kodolly.protocol.embeddings import EmbeddingRequest, check_call
from kodolly.protocol.openai import ChatRequest, CompletionRequest, check, without_nulls
from kodolly.protocol.request_bounds import check_bounds
from kodolly.store.store import Store

Json = dict[str, Any]


def batch_targets(runner: CompletionRunner, store: Store) -> Mapping[str, Target]:
    """By path, in the order in which an error lists them."""
    return {
        "/v1/chat/completions": _whole(
            "/v1/chat/completions", lambda body: check(ChatRequest, body), runner
        ),
        "/v1/completions": _whole(
            "/v1/completions", lambda body: check(CompletionRequest, body), runner
        ),
        EMBEDDINGS: _whole(EMBEDDINGS, lambda body: check_call(EmbeddingRequest, body), runner),
        "/v1/responses": Target(_check_response, _Responses(runner, store).answer),
    }


def _whole(path: str, check_fields: Callable[[Json], object], runner: CompletionRunner) -> Target:
    """A path whose answers the runner gives whole. `check_fields` raises ApiError."""

    def checked(body: Json) -> None:
        own = without_nulls(body)
        check_fields(own)
        check_bounds(own)

    async def answer(body: Json, owner: str, request_id: str) -> Json:
        own = _at_lowest_class(without_nulls(body))
        size = len(orjson.dumps(own))
        request = ApiRequest(path, own, request_id, "messages" in own, size)
        result: Json = orjson.loads(await runner.whole(request, _key(owner)))
        return result

    return Target(checked, answer)


def _check_response(body: Json) -> None:
    if body.get("background"):
        raise BadRequest("a batch is in the background itself", param="background")
    check_request({**body, "store": False})


class _Responses:
    """Responses of a batch are not stored: they are in its output."""

    def __init__(self, runner: CompletionRunner, store: Store) -> None:
        self._runner = runner
        self._history = History(store)

    async def answer(self, body: Json, owner: str, request_id: str) -> Json:
        """The response. Raises ApiError."""
        request = check_request({**body, "store": False})
        items = await self._history.earlier(request, owner)
        items += await self._history.own(input_items(request), owner)
        size = len(orjson.dumps(body))
        prepared = prepare(request, items, request_id, store=False, size=size)
        chat = replace(prepared.chat, body=_at_lowest_class(prepared.chat.body))
        machine = EventMachine(prepared.base)
        writer = ResponseWriter(machine, request_id, None)
        try:
            await self._runner.stream(chat, _key(owner), ClientStream(chat, writer))
        except ApiError as error:
            raise in_terms_of_responses(error) from error
        response: Json = machine.response()
        if response["status"] == "failed":
            raise EngineFailed(response["error"]["message"], code=response["error"]["code"])
        return response


def _at_lowest_class(body: Json) -> Json:
    return body | {"service_tier": "flex"}  # OpenAI's name of it; see admission/fair_queue


def _key(owner: str) -> str:
    """A batch waits in a line of its own, not in that of its owner's live requests."""
    return f"batch {owner}"
