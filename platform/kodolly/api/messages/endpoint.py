"""POST /v1/messages: a chat, asked and answered as Anthropic's API has it."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from kodolly.api.auth import authorization_of
from kodolly.api.client_output import ClientOutput
from kodolly.api.completions import Endpoint
from kodolly.api.messages.errors import envelope
from kodolly.api.messages.events import MessageEvents
from kodolly.api.messages.output import MessageOutput
from kodolly.api.messages.request import MessagesRequest, check
from kodolly.api.messages.result import message
from kodolly.api.messages.to_chat import chat_body
from kodolly.api.relay.client_stream import ClientStream
from kodolly.api.request import ApiRequest
from kodolly.errors import ApiError
from kodolly.http import server
from kodolly.http.server import JsonResponse
from kodolly.protocol.request_bounds import check_bounds

CHAT = "/v1/chat/completions"


class MessagesEndpoint(Endpoint):
    """What all paths below /v1/messages share: keys and errors as Anthropic's clients know them."""

    async def _refusal(self, http_request: Request, error: ApiError, request_id: str) -> Response:
        headers = error.headers | id_headers(request_id)
        return JsonResponse(envelope(error, request_id), status_code=error.status, headers=headers)

    def admit(self, http_request: Request) -> str:
        """The client's key. Raises Unauthorized."""
        return self._services.keys.admit(authorization_of(http_request.headers))


class Messages(MessagesEndpoint):
    """The endpoint of /v1/messages."""

    async def _respond(self, http_request: Request, output: ClientOutput) -> Response | None:
        key = self.admit(http_request)
        body, size = await self._read_object(http_request)
        asked = check(MessagesRequest, body)
        chat = chat_body(asked)
        check_bounds(chat)
        request = ApiRequest(CHAT, chat, output.request_id, True, size, output.measurement)
        stops = asked.stop_sequences or []
        if not asked.stream:
            work = self._whole(request, key, stops)
            return await server.unless_gone(work, http_request.scope)
        stream = ClientStream(request, MessageOutput(output, MessageEvents(stops)))
        streaming = self._services.runner.stream(request, key, stream)
        return await server.unless_gone(streaming, http_request.scope)

    async def _whole(self, request: ApiRequest, key: str, stops: list[str]) -> Response:
        answer = orjson.loads(await self._services.runner.whole(request, key))
        headers = id_headers(request.request_id)
        return JsonResponse(message(answer, stops), headers=headers)


def id_headers(request_id: str) -> dict[str, str]:
    """The request's id, under our name and Anthropic's."""
    return {"X-Request-Id": request_id, "request-id": request_id}
