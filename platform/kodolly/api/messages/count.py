"""POST /v1/messages/count_tokens: how many tokens the prompt of such a request has, by the engine's tokenizer."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from kodolly.api.client_output import ClientOutput
from kodolly.api.messages.endpoint import MessagesEndpoint, id_headers
from kodolly.api.messages.request import CountTokensRequest, check
from kodolly.api.messages.to_chat import chat_body
from kodolly.api.request import TOKENIZE, ApiRequest
from kodolly.http import server
from kodolly.http.server import JsonResponse
from kodolly.protocol.request_bounds import check_bounds

# What makes the prompt of a chat.
PROMPT_FIELDS = frozenset(
    {"model", "messages", "tools", "add_generation_prompt", "continue_final_message"}
)


class CountTokens(MessagesEndpoint):
    """The endpoint of /v1/messages/count_tokens."""

    async def _respond(self, http_request: Request, output: ClientOutput) -> Response | None:
        self.admit(http_request)
        body, size = await self._read_object(http_request)
        chat = chat_body(check(CountTokensRequest, body))
        check_bounds(chat)
        prompt = {name: chat[name] for name in chat.keys() & PROMPT_FIELDS}
        request = ApiRequest(TOKENIZE, prompt, output.request_id, True, size, output.measurement)
        return await server.unless_gone(self._count(request), http_request.scope)

    async def _count(self, request: ApiRequest) -> Response:
        answer = orjson.loads(await self._services.runner.at_once(request))
        headers = id_headers(request.request_id)
        return JsonResponse({"input_tokens": answer["count"]}, headers=headers)
