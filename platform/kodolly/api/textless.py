"""POST /v1/embeddings, /tokenize and /detokenize, for which an engine makes no text; GET /version."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from kodolly import __version__
from kodolly.api.auth import KeyRing
from kodolly.api.client_output import ClientOutput
from kodolly.api.completions import Endpoint, EndpointServices, JsonBytes
from kodolly.api.request import EMBEDDINGS, ApiRequest
from kodolly.http import bodies, server
from kodolly.protocol.embeddings import (
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
    Version,
    check_call,
)
from kodolly.protocol.openai import without_nulls
from kodolly.protocol.request_bounds import check_bounds

Kind = type[EmbeddingRequest] | type[TokenizeRequest] | type[DetokenizeRequest]


class TextlessCall(Endpoint):
    """One of the paths."""

    def __init__(self, kind: Kind, path: str, services: EndpointServices) -> None:
        super().__init__(services)
        self._kind = kind
        self._path = path

    async def _respond(self, http_request: Request, output: ClientOutput) -> Response | None:
        key = self._services.keys.admit(http_request.headers.get("authorization", ""))
        request = await self._read(http_request, output)
        return await server.unless_gone(self._answer(request, key), http_request.scope)

    async def _read(self, http_request: Request, output: ClientOutput) -> ApiRequest:
        services = self._services
        body, size = await bodies.read_sized_object(
            http_request, services.max_body, services.body_turns
        )
        body = without_nulls(body)
        check_call(self._kind, body)  # type: ignore[type-var]
        check_bounds(body)
        chat = "messages" in body
        return ApiRequest(self._path, body, output.request_id, chat, size, output.measurement)

    async def _answer(self, request: ApiRequest, key: str) -> Response:
        runner = self._services.runner
        queues = self._path == EMBEDDINGS
        body = await (runner.whole(request, key) if queues else runner.at_once(request))
        return JsonBytes(body, request.request_id)


class VersionEndpoint:
    """GET /version."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def version(self, request: Request) -> Version:
        """KoDolly's version."""
        self._keys.admit(request.headers.get("authorization", ""))
        return Version(version=__version__)
