"""GET /v1/models and /v1/models/{id}: the models that have a ready worker now."""

from __future__ import annotations

import time

from fastapi import Request

from kodolly.api.auth import KeyRing
from kodolly.api.routing.table import WorkerTable
from kodolly.errors import ModelNotFound
from kodolly.protocol.openai_results import ModelCard, ModelList


class Models:
    """Both endpoints."""

    def __init__(self, table: WorkerTable, keys: KeyRing) -> None:
        self._table = table
        self._keys = keys
        self._created = int(time.time())

    async def list_models(self, request: Request) -> ModelList:
        """Every model with a ready worker."""
        self._keys.admit(request.headers.get("authorization", ""))
        return ModelList(data=[self._card(model) for model in self._table.models()])

    async def retrieve_model(self, request: Request, model: str) -> ModelCard:
        """One model, if it has a ready worker; its name may hold slashes."""
        self._keys.admit(request.headers.get("authorization", ""))
        if model not in self._table.models():
            raise ModelNotFound(f"The model '{model}' does not exist.", param="model")
        return self._card(model)

    def _card(self, model: str) -> ModelCard:
        workers = self._table.by_wait(model)
        extensions = [w.extension for w in workers if w.extension]
        parents = [e.parents[model] for e in extensions if model in e.parents]
        lengths = [length for e in extensions if (length := e.context_of(model))]
        return ModelCard(
            id=model,
            created=self._created,
            max_model_len=max(lengths, default=None),  # a request goes where it fits
            workers=len(workers),
            parent=parents[0] if parents else None,
        )
