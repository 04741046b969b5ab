"""GET /v1/models and /v1/models/{id}: the models that have a ready worker now."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response

from kodolly.api.auth import KeyRing
from kodolly.api.routing.table import WorkerTable
from kodolly.errors import ModelNotFound
from kodolly.http.server import JsonResponse


class Models:
    """Both endpoints."""

    def __init__(self, table: WorkerTable, keys: KeyRing) -> None:
        self._table = table
        self._keys = keys
        self._created = int(time.time())

    async def list(self, request: Request) -> Response:
        """Every model with a ready worker."""
        self._keys.admit(request.headers.get("authorization", ""))
        return JsonResponse({"object": "list", "data": list(map(self._card, self._table.models()))})

    async def retrieve(self, request: Request) -> Response:
        """One of them."""
        self._keys.admit(request.headers.get("authorization", ""))
        model = request.path_params["model"]
        if model not in self._table.models():
            raise ModelNotFound(f"The model '{model}' does not exist.", param="model")
        return JsonResponse(self._card(model))

    def _card(self, model: str) -> dict[str, object]:
        workers = self._table.by_wait(model)
        extensions = [w.extension for w in workers if w.extension]
        parents = [e.parents[model] for e in extensions if model in e.parents]
        lengths = [e.context_length for e in extensions if e.context_length]
        return {
            "id": model,
            "object": "model",
            "created": self._created,
            "owned_by": "kodolly",
            "max_model_len": min(lengths, default=None),
            "workers": len(workers),
            "parent": parents[0] if parents else None,
        }
