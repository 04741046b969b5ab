"""Conversations: items that responses read and add to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kodolly.api.completions import EndpointServices
from kodolly.api.responses.ids import CONVERSATION, new_id
from kodolly.api.responses.request import Items, Metadata
from kodolly.api.responses.stored.history import History, not_found
from kodolly.api.responses.stored.retrieve import Limit, Order, list_of
from kodolly.api.responses.to_chat import checked_items
from kodolly.errors import BadRequest
from kodolly.http import bodies
from kodolly.http.server import JsonResponse
from kodolly.protocol.faults import bad_request
from kodolly.protocol.openai import without_nulls
from kodolly.store.records import ConversationRecord, owner_of

if TYPE_CHECKING:
    from kodolly.store.store import Store

Json = dict[str, Any]
MAX_NEW_ITEMS = 20  # OpenAI's bound of one call


class ConversationBody(BaseModel):
    """Body of POST /v1/conversations and of POST /v1/conversations/{id}."""

    model_config = ConfigDict(extra="ignore", strict=True)

    items: Items | None = Field(default=None, max_length=MAX_NEW_ITEMS)
    metadata: Metadata | None = None


class ItemsBody(BaseModel):
    """Body of POST /v1/conversations/{id}/items."""

    model_config = ConfigDict(extra="ignore", strict=True)

    items: Annotated[Items, Field(min_length=1, max_length=MAX_NEW_ITEMS)]


Body = TypeVar("Body", ConversationBody, ItemsBody)


class Conversations:
    """The endpoints below /v1/conversations. `store` None: a conversation cannot be kept."""

    def __init__(self, services: EndpointServices, store: Store | None) -> None:
        self._services = services
        self._store = store

    async def create_conversation(self, request: Request) -> Response:
        """A new conversation, with some items if given."""
        owner = self._owner(request)
        body = await self._body(request, ConversationBody)
        store = self._required()
        record = ConversationRecord(
            new_id(CONVERSATION), owner, body.metadata or {}, int(time.time())
        )
        new = await History(store).own(checked_items(body.items or [], "items"), owner)
        await store.conversations.create(record, new)
        return JsonResponse(_shown(record))

    async def retrieve_conversation(self, request: Request, conversation_id: str) -> Response:
        """A conversation without its items."""
        owner = self._owner(request)
        record = self._store and await self._store.conversations.get(conversation_id, owner)
        if not record:
            raise not_found("conversation", conversation_id)
        return JsonResponse(_shown(record))

    async def update_conversation(self, request: Request, conversation_id: str) -> Response:
        """Replaces a conversation's metadata."""
        owner = self._owner(request)
        body = await self._body(request, ConversationBody)
        record = self._store and await self._store.conversations.update(
            conversation_id, owner, body.metadata or {}
        )
        if not record:
            raise not_found("conversation", conversation_id)
        return JsonResponse(_shown(record))

    async def delete_conversation(self, request: Request, conversation_id: str) -> Response:
        """Deletes a conversation and its items; the responses in it stay."""
        owner = self._owner(request)
        if not (self._store and await self._store.conversations.delete(conversation_id, owner)):
            raise not_found("conversation", conversation_id)
        return JsonResponse(
            {"id": conversation_id, "object": "conversation.deleted", "deleted": True}
        )

    async def create_items(self, request: Request, conversation_id: str) -> Response:
        """Adds items at a conversation's end."""
        owner = self._owner(request)
        body = await self._body(request, ItemsBody)
        new = await History(self._store).own(checked_items(body.items, "items"), owner)
        store = self._store
        if not (store and await store.conversations.add_items(conversation_id, owner, new)):
            raise not_found("conversation", conversation_id)
        ids = [str(item["id"]) for item in new]
        return JsonResponse(
            {
                "object": "list",
                "data": new,
                "first_id": ids[0],
                "last_id": ids[-1],
                "has_more": False,
            }
        )

    async def list_items(
        self,
        request: Request,
        conversation_id: str,
        after: str | None = None,
        limit: Limit = 20,
        order: Order = "desc",
    ) -> Response:
        """A conversation's items, the newest first unless `order=asc`."""
        owner = self._owner(request)
        page = None
        if self._store is not None:
            page = await self._store.conversations.list_items(
                conversation_id, owner, after=after, limit=limit, order=order
            )
        if page is None:
            raise not_found("conversation", conversation_id)
        return JsonResponse(list_of(page))

    async def retrieve_item(self, request: Request, conversation_id: str, item_id: str) -> Response:
        """One item."""
        owner = self._owner(request)
        item = self._store and await self._store.conversations.get_item(
            conversation_id, item_id, owner
        )
        if not item:
            raise not_found("item", item_id)
        return JsonResponse(item)

    async def delete_item(self, request: Request, conversation_id: str, item_id: str) -> Response:
        """Deletes one item; the conversation without it."""
        owner = self._owner(request)
        store = self._store
        if not (store and await store.conversations.delete_item(conversation_id, item_id, owner)):
            raise not_found("item", item_id)
        record = await store.conversations.get(conversation_id, owner)
        if not record:
            raise not_found("conversation", conversation_id)
        return JsonResponse(_shown(record))

    def _owner(self, request: Request) -> str:
        return owner_of(self._services.keys.admit(request.headers.get("authorization", "")))

    def _required(self) -> Store:
        if self._store is None:
            raise BadRequest("Conversations need a store, and this server has none (--store none).")
        return self._store

    async def _body(self, request: Request, kind: type[Body]) -> Body:
        services = self._services
        body, _ = await bodies.read_sized_object(request, services.max_body, services.body_turns)
        body = without_nulls(body)
        try:
            return kind.model_validate(body)
        except ValidationError as error:
            raise bad_request(error, body) from error


def _shown(record: ConversationRecord) -> Json:
    return {
        "id": record.id,
        "object": "conversation",
        "created_at": int(record.created_at),
        "metadata": record.metadata,
    }
