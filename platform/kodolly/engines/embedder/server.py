"""The engine's HTTP endpoints: OpenAI's embeddings, vLLM's for tokens, health, load and metrics."""

from __future__ import annotations

import asyncio
import base64
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from kodolly.engines.embedder.model import Encoder
from kodolly.engines.transformers.server import MAX_BODY, KeyGuard
from kodolly.errors import ApiError, BadRequest, ContextOverflow, ModelNotFound, NoWorker
from kodolly.http.bodies import read_object
from kodolly.http.server import JsonResponse, error_response
from kodolly.http.site_guard import GuardedApp, SiteGuard
from kodolly.protocol.embeddings import (
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
    check_call,
)
from kodolly.protocol.openai import without_nulls
from kodolly.protocol.parameters import EMBEDDER, refuse_unhonoured

NAME = "transformers"


class Embedder:
    """One encoder behind HTTP, whose model may be asked for by any of `names`."""

    def __init__(self, names: list[str], *, batch: int, max_waiting: int) -> None:
        """`batch`: texts that are embedded together. `max_waiting`: requests at a time, at most."""
        self.encoder: Encoder | None = None  # None while it is loaded
        self.load = self.prompt_tokens = 0
        self._names, self._batch, self._max = names, batch, max_waiting
        self._thread = ThreadPoolExecutor(1, "encoder")
        self._created = int(time.time())

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        body = without_nulls(await read_object(request, MAX_BODY))
        asked = check_call(EmbeddingRequest, body)
        refuse_unhonoured(body, EMBEDDER, NAME)
        name, encoder = self._model_name(asked.model), self._ready()
        size = self._size(asked.dimensions, encoder)
        if self.load >= self._max:
            raise NoWorker("the engine's queue is full", headers={"Retry-After": "1"})
        self.load += 1
        try:
            rows = [await self._tokens(encoder, text, body) for text in _texts(asked.input)]
            vectors = await self._vectors(encoder, rows)
        finally:
            self.load -= 1
        count = sum(map(len, rows))
        encode = _base64 if asked.encoding_format == "base64" else list
        data = [
            {
                "object": "embedding",
                "index": index,
                "embedding": encode(_cut(vector, size, encoder)),
            }
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
        answer = {"id": f"embd-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
        return JsonResponse(answer | {"model": name, "data": data, "usage": usage})

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize, of a text."""
        body = without_nulls(await read_object(request, MAX_BODY))
        asked = check_call(TokenizeRequest, {"model": self._names[0]} | body)
        if asked.prompt is None:
            raise BadRequest("messages: this model has no chat template", param="messages")
        self._model_name(asked.model)
        encoder, text = self._ready(), asked.prompt
        special = asked.add_special_tokens is not False
        ids = await self._run(lambda: encoder.tokens(text, special=special))
        names = encoder.tokenizer.convert_ids_to_tokens(ids) if asked.return_token_strs else None
        answer = {"count": len(ids), "max_model_len": encoder.recipe.longest, "tokens": ids}
        return JsonResponse(answer | {"token_strs": names})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        body = without_nulls(await read_object(request, MAX_BODY))
        asked = check_call(DetokenizeRequest, {"model": self._names[0]} | body)
        self._model_name(asked.model)
        encoder = self._ready()
        _check_ids(asked.tokens, encoder, "tokens")
        return JsonResponse(
            {"prompt": await self._run(lambda: encoder.tokenizer.decode(asked.tokens))}
        )

    async def health(self, _: Request) -> Response:
        """200 once requests are taken."""
        ready = self.encoder is not None
        return JsonResponse({"status": "ok" if ready else "loading"}, 200 if ready else 503)

    async def models(self, _: Request) -> Response:
        """The model under each of its names."""
        card = {"object": "model", "created": self._created, "owned_by": "kodolly", "parent": None}
        longest = self.encoder.recipe.longest if self.encoder else None
        cards = [card | {"id": n, "root": n, "max_model_len": longest} for n in self._names]
        return JsonResponse({"object": "list", "data": cards})

    async def server_load(self, _: Request) -> Response:
        """Requests that run or wait."""
        return JsonResponse({"server_load": self.load})

    async def metrics(self, _: Request) -> Response:
        """Prometheus text."""
        rows = (
            ("requests_running", "gauge", self.load),
            ("prompt_tokens_total", "counter", self.prompt_tokens),
        )
        lines = [
            f"# TYPE kodolly_engine_{name} {kind}\nkodolly_engine_{name} {value}\n"
            for name, kind, value in rows
        ]
        return PlainTextResponse("".join(lines), media_type="text/plain; version=0.0.4")

    async def _vectors(self, encoder: Encoder, rows: list[list[int]]) -> list[list[float]]:
        """Vectors in the order of `rows`; texts of like length go together. Others run in between."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        vectors: list[list[float]] = [[] for _ in rows]
        for start in range(0, len(order), self._batch):
            part = order[start : start + self._batch]
            batch = [rows[index] for index in part]
            made = await self._run(lambda batch=batch: encoder.vectors(batch))  # type: ignore[misc]
            for index, vector in zip(part, made, strict=True):
                vectors[index] = vector
            self.prompt_tokens += sum(map(len, batch))
        return vectors

    async def _tokens(
        self, encoder: Encoder, text: str | list[int], body: dict[str, Any]
    ) -> list[int]:
        ids: list[int]
        if isinstance(text, str):
            special = body.get("add_special_tokens") is not False
            ids = await self._run(lambda: encoder.tokens(text, special=special))
        else:
            ids = text
            _check_ids(ids, encoder, "input")
        if len(ids) > encoder.recipe.longest:
            raise ContextOverflow(
                f"This model's maximum context length is {encoder.recipe.longest} tokens, but a text"
                f" has {len(ids)}.",
                param="input",
            )
        if not ids:
            raise BadRequest("input: a text has no tokens", param="input")
        return ids

    async def _run(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _size(self, dimensions: int | None, encoder: Encoder) -> int:
        sizes = (encoder.size, *encoder.recipe.sizes)
        if dimensions is not None and dimensions not in sizes:
            raise BadRequest(
                f"dimensions: this model makes {', '.join(map(str, sizes))}", param="dimensions"
            )
        return dimensions or encoder.size

    def _ready(self) -> Encoder:
        if self.encoder is None:
            raise NoWorker("the model is loading", headers={"Retry-After": "1"})
        return self.encoder

    def _model_name(self, name: str) -> str:
        if name not in self._names:
            raise ModelNotFound(f"the model {name!r} does not exist", param="model")
        return name


def create_app(embedder: Embedder, *, key: str | None, guard: SiteGuard) -> ASGIApp:
    """The ASGI application."""
    app: ASGIApp = Starlette(
        routes=[
            Route("/health", embedder.health),
            Route("/load", embedder.server_load),
            Route("/metrics", embedder.metrics),
            Route("/v1/models", embedder.models),
            Route("/v1/embeddings", embedder.embeddings, methods=["POST"]),
            Route("/tokenize", embedder.tokenize, methods=["POST"]),
            Route("/detokenize", embedder.detokenize, methods=["POST"]),
        ],
        exception_handlers={ApiError: error_response},
    )
    return GuardedApp(app if key is None else KeyGuard(app, key), guard)


def _texts(texts: Any) -> list[str | list[int]]:
    """The texts of an input, which may be a single one, as text or as token ids."""
    several = isinstance(texts, list) and not isinstance(texts[0], int)
    return texts if several else [texts]


def _check_ids(ids: Sequence[int], encoder: Encoder, field: str) -> None:
    most = len(encoder.tokenizer)
    if any(not 0 <= token < most for token in ids):
        raise BadRequest(f"{field}: token ids are from 0 to {most - 1}", param=field)


def _cut(vector: list[float], size: int, encoder: Encoder) -> list[float]:
    """The first numbers of a vector, of length one again if whole ones have that."""
    if size == len(vector):
        return vector
    short = vector[:size]
    length = sum(value * value for value in short) ** 0.5 if encoder.recipe.normalize else 1.0
    return [value / (length or 1.0) for value in short]


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
