"""What a response's input refers to: earlier responses, a conversation, items by their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kodolly.api.responses.ids import with_id
from kodolly.api.responses.request import ResponseRequest
from kodolly.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from kodolly.store.store import Store

Json = dict[str, Any]
MAX_ITEMS = 2048  # of a conversation, that a response reads: its newest


class History:
    """Looks up what is stored; `store` None: nothing is."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    async def earlier(self, request: ResponseRequest, owner: str) -> list[Json]:
        """The items before the request's own. Raises NotFound, StoreUnavailable."""
        if previous := request.previous_response_id:
            if self._store is None:
                raise not_found("response", previous, "previous_response_id")
            record = await self._store.responses.get(previous, owner)
            if record is None:
                raise not_found("response", previous, "previous_response_id")
            if record.status in ("queued", "in_progress"):
                raise BadRequest(
                    f"The response {previous!r} is not finished yet.",
                    param="previous_response_id",
                )
            items = await self._store.responses.chain(previous, owner)
            if items is None:
                raise not_found("response", f"before {previous}", "previous_response_id")
            return items
        if conversation := request.conversation_id:
            if self._store is None:
                raise not_found("conversation", conversation, "conversation")
            page = await self._store.conversations.list_items(
                conversation, owner, limit=MAX_ITEMS, order="desc"
            )
            if page is None:
                raise not_found("conversation", conversation, "conversation")
            return page.items[::-1]
        return []

    async def own(self, items: list[Json], owner: str) -> list[Json]:
        """The request's own items with ids; references are replaced by what they name.

        Raises NotFound, StoreUnavailable.
        """
        ids = [item["id"] for item in items if item["type"] == "item_reference"]
        named = await self._store.items.resolve(ids, owner) if ids and self._store else {}
        for each in ids:
            if each not in named:
                raise not_found("item", each, "input")
        return [
            with_id(named[item["id"]] if item["type"] == "item_reference" else item)
            for item in items
        ]


def not_found(kind: str, name: str, param: str | None = None) -> NotFound:
    """The error for an id of which this client has nothing."""
    return NotFound(f"No {kind} with id {name!r} was found.", param=param, code=f"{kind}_not_found")
