"""Stored responses: retrieve, follow, cancel, delete, and list what they were asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import Query, Request, Response
from starlette.types import Receive, Scope, Send

from kodolly.api.client_output import ClientOutput
from kodolly.api.completions import Endpoint, EndpointServices
from kodolly.api.responses.request import check_request
from kodolly.api.responses.result import base_response, with_result
from kodolly.api.responses.stored.follow import follow_run, follow_store
from kodolly.api.responses.stored.history import not_found
from kodolly.api.responses.stored.run import response_of
from kodolly.api.responses.stored.runs import Runs
from kodolly.errors import ApiError
from kodolly.http import server
from kodolly.http.server import JsonResponse
from kodolly.store.records import TERMINAL, ItemPage, ResponseRecord, owner_of

if TYPE_CHECKING:
    from kodolly.store.store import Store

Json = dict[str, Any]
CANCEL_TIMEOUT = (
    10.0  # seconds for which a cancellation waits for the process that makes the response
)
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]


class EventStream(Response):
    """A response of FastAPI's that is a stream of events on our own output."""

    def __init__(
        self, services: EndpointServices, write: Callable[[ClientOutput], Awaitable[None]]
    ) -> None:
        super().__init__()
        self._endpoint = _Stream(services, write)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._endpoint(scope, receive, send)


class _Stream(Endpoint):
    def __init__(
        self, services: EndpointServices, write: Callable[[ClientOutput], Awaitable[None]]
    ) -> None:
        super().__init__(services)
        self._write = write

    async def _respond(self, http_request: Request, output: ClientOutput) -> None:
        pings = self._services.runner.pings
        pings.add(output)
        try:
            await server.unless_gone(self._pass_on(output), http_request.scope)
        finally:
            pings.discard(output)

    async def _pass_on(self, output: ClientOutput) -> None:
        try:
            await self._write(output)
        except ApiError:  # the store is away: the client attaches again, after the event it has
            if not output.has_started:
                raise
            await output.close()


class StoredResponses:
    """The endpoints below /v1/responses/{id}. `runs` None: nothing is stored, so all are 404."""

    def __init__(self, services: EndpointServices, runs: Runs | None) -> None:
        self._services = services
        self._runs = runs

    async def retrieve_response(
        self,
        request: Request,
        response_id: str,
        stream: bool = False,
        starting_after: Annotated[int | None, Query(ge=-1)] = None,
    ) -> Response:
        """A response as it is now or, with `stream=true`, its events after `starting_after`."""
        owner = self._owner(request)
        runs = self._stored(response_id)
        record = await self._record(response_id, owner)
        run = runs.get(response_id)
        if not stream:
            if record.status not in TERMINAL and run is not None:
                return JsonResponse(run.response())
            return JsonResponse(await stored_response(record, runs.store))
        after = -1 if starting_after is None else starting_after

        async def write(output: ClientOutput) -> None:
            if run is not None and not run.over.is_set():
                await follow_run(run, run.attach(output, after), runs.store, output)
            else:
                await follow_store(base_of(record), runs.store, output, after)

        return EventStream(self._services, write)

    async def cancel_response(self, request: Request, response_id: str) -> Response:
        """Stops a response that is being made; the response as it is then."""
        owner = self._owner(request)
        runs = self._stored(response_id)
        record = await self._record(response_id, owner)
        if record.status not in TERMINAL:
            await runs.store.responses.request_cancel(response_id, owner)
            try:
                async with asyncio.timeout(CANCEL_TIMEOUT):
                    async for _ in runs.store.follower.follow(response_id):
                        pass
            except TimeoutError:
                pass
            record = await self._record(response_id, owner)
        return JsonResponse(await stored_response(record, runs.store))

    async def delete_response(self, request: Request, response_id: str) -> Response:
        """Deletes a response; one that is being made is stopped."""
        owner = self._owner(request)
        if not await self._stored(response_id).store.responses.delete(response_id, owner):
            raise not_found("response", response_id)
        return JsonResponse({"id": response_id, "object": "response", "deleted": True})

    async def list_input_items(
        self,
        request: Request,
        response_id: str,
        after: str | None = None,
        limit: Limit = 20,
        order: Order = "desc",
    ) -> Response:
        """The items that a response was asked with, earlier turns left out."""
        owner = self._owner(request)
        page = await self._stored(response_id).store.responses.list_input_items(
            response_id, owner, after=after, limit=limit, order=order
        )
        if page is None:
            raise not_found("response", response_id)
        return JsonResponse(list_of(page))

    def _owner(self, request: Request) -> str:
        return owner_of(self._services.keys.admit(request.headers.get("authorization", "")))

    def _stored(self, response_id: str) -> Runs:
        if self._runs is None:
            raise not_found("response", response_id)
        return self._runs

    async def _record(self, response_id: str, owner: str) -> ResponseRecord:
        record = await self._stored(response_id).store.responses.get(response_id, owner)
        if record is None:
            raise not_found("response", response_id)
        return record


def base_of(record: ResponseRecord) -> Json:
    """The response object before anything has come, from the stored request."""
    return base_response(
        check_request(record.request), record.id, int(record.created_at), store=True
    )


async def stored_response(record: ResponseRecord, store: Store) -> Json:
    """The response object of a stored response, finished or not."""
    base = base_of(record)
    if record.status not in TERMINAL:
        return response_of(base, (await store.responses.events(record.id)).deltas)
    output = await store.responses.output_items(record.id)
    if not output and record.status == "failed":  # perhaps lost, and not finished by its process
        output = response_of(base, (await store.responses.events(record.id)).deltas)["output"]
    return with_result(base | {"output": output}, record.status, record.result or {})


def list_of(page: ItemPage) -> Json:
    """A page of items as OpenAI's API lists them."""
    ids = [item["id"] for item in page.items]
    return {
        "object": "list",
        "data": page.items,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": page.has_more,
    }
