"""The paths of the Responses API and of Conversations, and what OpenAPI says of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Body, FastAPI, Security

from kodolly.api import document
from kodolly.api.completions import EndpointServices
from kodolly.api.responses.endpoint import InputTokens, Responses
from kodolly.api.responses.request import ResponseRequest
from kodolly.api.responses.stored.conversations import Conversations
from kodolly.api.responses.stored.retrieve import StoredResponses
from kodolly.api.responses.stored.runs import Runs
from kodolly.http.fastapi_app import DirectApp

RESPONSES, CONVERSATIONS = "/v1/responses", "/v1/conversations"


async def create_response(body: Annotated[ResponseRequest, Body()]) -> dict[str, Any]:
    """The answer to an input, whole or streamed, stored unless `store` is false."""
    raise NotImplementedError(f"Responses answers {body.model} itself")


async def count_input_tokens(body: Annotated[ResponseRequest, Body()]) -> dict[str, Any]:
    """How many tokens an input has, by the model's own tokenizer."""
    raise NotImplementedError(f"InputTokens answers {body.model} itself")


def add_responses(app: DirectApp, services: EndpointServices, runs: Runs | None) -> None:
    """Serves all of it. `runs` None: without a store."""
    app.add_direct_route("POST", RESPONSES, Responses(services, runs))
    app.add_direct_route("POST", f"{RESPONSES}/input_tokens", InputTokens(services, runs))
    _add(app, "POST", RESPONSES, create_response, responses={200: document.EVENTS})
    _add(app, "POST", f"{RESPONSES}/input_tokens", count_input_tokens)
    stored = StoredResponses(services, runs)
    one = f"{RESPONSES}/{{response_id}}"
    _add(app, "GET", one, stored.retrieve_response, responses={200: document.EVENTS})
    _add(app, "DELETE", one, stored.delete_response)
    _add(app, "POST", f"{one}/cancel", stored.cancel_response)
    _add(app, "GET", f"{one}/input_items", stored.list_input_items)
    conversations = Conversations(services, runs.store if runs else None)
    one = f"{CONVERSATIONS}/{{conversation_id}}"
    _add(app, "POST", CONVERSATIONS, conversations.create_conversation)
    _add(app, "GET", one, conversations.retrieve_conversation)
    _add(app, "POST", one, conversations.update_conversation)
    _add(app, "DELETE", one, conversations.delete_conversation)
    _add(app, "POST", f"{one}/items", conversations.create_items)
    _add(app, "GET", f"{one}/items", conversations.list_items)
    _add(app, "GET", f"{one}/items/{{item_id}}", conversations.retrieve_item)
    _add(app, "DELETE", f"{one}/items/{{item_id}}", conversations.delete_item)


def _add(app: FastAPI, method: str, path: str, endpoint: Any, **options: Any) -> None:
    responses = {**options.pop("responses", {}), **document.ERRORS}
    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        responses=responses,
        dependencies=[Security(document.bearer)],
        **options,
    )
