"""GET /v1/models and /v1/models/{id}: the models that have a ready worker now."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from fastapi import Request

from kodolly.api.auth import KeyRing, authorization_of
from kodolly.api.routing.table import Worker, WorkerTable
from kodolly.errors import ModelNotFound
from kodolly.protocol.openai_results import ModelCard, ModelList

FASTCHAT = ["chat", "completions"]  # of a FastChat worker


class Models:
    """Both endpoints."""

    def __init__(self, table: WorkerTable, keys: KeyRing) -> None:
        self._table = table
        self._keys = keys
        self._created = int(time.time())

    async def list_models(self, request: Request) -> ModelList:
        """Every model with a ready worker, and every alias of one."""
        self._keys.admit(authorization_of(request.headers))
        aliases = self._table.aliases()
        names = sorted([*self._table.models(), *aliases])
        return ModelList(data=[self._card(name, aliases) for name in names])

    async def retrieve_model(self, request: Request, model: str) -> ModelCard:
        """One model or alias, if it has a ready worker; its name may hold slashes."""
        self._keys.admit(authorization_of(request.headers))
        aliases = self._table.aliases()
        if model not in aliases and model not in self._table.models():
            raise ModelNotFound(f"The model '{model}' does not exist.", param="model")
        return self._card(model, aliases)

    def _card(self, name: str, aliases: Mapping[str, str]) -> ModelCard:
        """The card of a model or alias. `aliases`: alias -> model."""
        model = aliases.get(name, name)
        workers = self._table.by_wait(model)
        extensions = [w.extension for w in workers if w.extension]
        parents = [e.parents[model] for e in extensions if model in e.parents]
        lengths = [length for e in extensions if (length := e.context_of(model))]
        owners = [e.owner for e in extensions if e.owner]
        preset = self._table.preset(model)
        return ModelCard(
            id=name,
            created=self._created,
            owned_by=owners[0] if owners else "kodolly",
            max_model_len=max(lengths, default=None),  # a request goes where it fits
            workers=len(workers),
            root=model,
            parent=parents[0] if parents else None,
            aliases=[alias for alias, real in aliases.items() if real == name],
            capabilities=_in_all(workers),
            defaults=dict(preset.defaults) if preset else {},
        )


def _in_all(workers: Sequence[Worker]) -> list[str] | None:
    """The capabilities that every worker has; None where one does not say."""
    stated = [w.extension.capabilities if w.extension else FASTCHAT for w in workers]
    if not stated or None in stated:
        return None
    first, *others = (names for names in stated if names is not None)
    return [name for name in first if all(name in other for other in others)]
