"""POST /v1/responses: stored or not, whole or streamed, in the foreground or in the background."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from kodolly.api.client_output import ClientOutput
from kodolly.api.completions import Endpoint, EndpointServices
from kodolly.api.relay.client_stream import ClientStream
from kodolly.api.responses.deltas import Json
from kodolly.api.responses.events import EventMachine, encode
from kodolly.api.responses.prepared import Prepared, prepare
from kodolly.api.responses.request import check_request
from kodolly.api.responses.stored.follow import follow_run
from kodolly.api.responses.stored.history import History
from kodolly.api.responses.stored.retrieve import stored_response
from kodolly.api.responses.stored.run import Run
from kodolly.api.responses.stored.runs import Runs
from kodolly.api.responses.to_chat import in_terms_of_responses, input_items
from kodolly.api.responses.writer import ResponseWriter, end_delta
from kodolly.api.routing.context import check_fits
from kodolly.errors import ApiError, BadRequest, EngineFailed
from kodolly.http import bodies, server
from kodolly.http.server import JsonResponse
from kodolly.protocol.openai import without_nulls
from kodolly.store.records import ResponseRecord, owner_of


class InputTokens(Endpoint):
    """POST /v1/responses/input_tokens: how long an input is, by the model's own tokenizer.

    The engine reads the prompt for it and makes one token: no other call is common to all engines.
    """

    def __init__(self, services: EndpointServices, runs: Runs | None) -> None:
        super().__init__(services)
        self._history = History(runs.store if runs else None)

    async def _respond(self, http_request: Request, output: ClientOutput) -> Response | None:
        services = self._services
        key = services.keys.admit(http_request.headers.get("authorization", ""))
        body, _ = await bodies.read_sized_object(
            http_request, services.max_body, services.body_turns
        )
        request = check_request({**body, "stream": None, "store": False, "max_output_tokens": 1})
        items = await self._history.earlier(request, owner_of(key))
        items += await self._history.own(input_items(request), owner_of(key))
        prepared = prepare(
            request, items, output.request_id, store=False, measurement=output.measurement
        )
        machine = EventMachine(prepared.base)
        writer = ResponseWriter(machine, output.request_id, None)
        stream = ClientStream(prepared.chat, writer)
        await server.unless_gone(
            services.runner.stream(prepared.chat, key, stream), http_request.scope
        )
        usage = machine.response()["usage"]
        if usage is None:
            raise EngineFailed("the engine counts no tokens")
        return JsonResponse(
            {"object": "response.input_tokens", "input_tokens": usage["input_tokens"]}
        )


class Responses(Endpoint):
    """Creates responses. `runs` None: nothing is stored, and every response says so."""

    def __init__(self, services: EndpointServices, runs: Runs | None) -> None:
        super().__init__(services)
        self._runs = runs
        self._history = History(runs.store if runs else None)

    async def _respond(self, http_request: Request, output: ClientOutput) -> Response | None:
        services = self._services
        key = services.keys.admit(http_request.headers.get("authorization", ""))
        body, size = await bodies.read_sized_object(
            http_request, services.max_body, services.body_turns
        )
        request = check_request(body)
        store = self._runs is not None and request.store is not False
        if request.background and not store:
            why = "this server stores none" if self._runs is None else "not with store: false"
            raise BadRequest(f"background: needs a stored response, {why}", param="background")
        owner = owner_of(key)
        earlier = await self._history.earlier(request, owner)
        items = input_items(request)
        own = await self._history.own(items, owner)
        if earlier or any(item["type"] == "item_reference" for item in items):
            size = 0  # there is more text than in the body
        prepared = prepare(
            request,
            [*earlier, *own],
            output.request_id,
            store=store,
            size=size,
            measurement=output.measurement,
        )
        try:
            work = (
                self._store(prepared, without_nulls(body), own, key, output)
                if store
                else self._pass_on(prepared, key, output)
            )
            return await server.unless_gone(work, http_request.scope)
        except ApiError as error:
            raise in_terms_of_responses(error) from error

    async def _pass_on(self, prepared: Prepared, key: str, output: ClientOutput) -> Response | None:
        """Answers without a store: the response lives as long as its client's connection."""
        runner = self._services.runner
        machine = EventMachine(prepared.base)
        client = output if prepared.request.stream else None
        writer = ResponseWriter(machine, output.request_id, client)
        await runner.stream(prepared.chat, key, ClientStream(prepared.chat, writer))
        return None if client else _whole(machine.response(), output.request_id)

    async def _store(
        self, prepared: Prepared, body: Json, own: list[Json], key: str, output: ClientOutput
    ) -> Response | None:
        """Stores a new response and has it made; this client is only its first reader."""
        assert self._runs is not None
        check_fits(prepared.chat, self._services.runner.table)
        request = prepared.request
        record = ResponseRecord(
            id=prepared.id,
            owner=owner_of(key),
            model=request.model,
            status="queued" if request.background else "in_progress",
            request=body,
            created_at=prepared.base["created_at"],
            background=bool(request.background),
            conversation_id=request.conversation_id,
            previous_response_id=request.previous_response_id,
        )
        await self._runs.store.responses.create(record, own)
        run = self._runs.start(prepared, key)
        if request.stream:
            await self._stream(run, output)
            return None
        if request.background:
            return JsonResponse(run.response(), headers={"X-Request-Id": output.request_id})
        await run.over.wait()
        if run.failure is not None:
            raise run.failure
        return await self._finished(run, key, output)

    async def _finished(self, run: Run, key: str, output: ClientOutput) -> Response:
        assert self._runs is not None
        if not run.has_moved:
            return _whole(run.machine.response(), output.request_id)
        async for _ in self._runs.store.follower.follow(run.id):
            pass
        record = await self._runs.store.responses.get(run.id, owner_of(key))
        if record is None:
            raise EngineFailed("The response was deleted while it was made.")
        return _whole(await stored_response(record, self._runs.store), output.request_id)

    async def _stream(self, run: Run, output: ClientOutput) -> None:
        assert self._runs is not None
        pings = self._services.runner.pings
        is_background = bool(run.prepared.request.background)
        reader = run.attach(output, waits=not is_background)
        pings.add(output)
        try:
            await follow_run(run, reader, self._runs.store, output)
        except ApiError as error:
            if not output.has_started:
                raise
            fault = {"code": error.code or error.type, "message": error.message}
            machine = EventMachine(run.prepared.base)
            events = [*machine.begin(), *machine.feed(end_delta(error=fault))]
            await output.write(encode(events))
            await output.close()
        finally:
            pings.discard(output)


def _whole(response: Json, request_id: str) -> Response:
    """The whole response. Raises EngineFailed if it has failed."""
    if response["status"] == "failed":
        raise EngineFailed(response["error"]["message"], code=response["error"]["code"])
    return JsonResponse(response, headers={"X-Request-Id": request_id})
