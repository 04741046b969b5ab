"""What a worker beside an attached engine serves: all of the engine's models, or those named."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from kodolly.engines.openai import Offer
from kodolly.errors import SettingsError
from kodolly.settings import WorkerSettings
from kodolly.worker.model import ServedModel, describe, named_template, with_tokenizer

log = logging.getLogger(__name__)

MAX_MODELS = 256  # that one worker may register
SHOWN = 20  # names that a message repeats


def model_names(settings: WorkerSettings) -> list[str]:
    """The names in --model-name, each once; none if it is not set."""
    parts = (settings.model_name or "").split(",")
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def attached_model(settings: WorkerSettings, url: str, offers: Sequence[Offer]) -> ServedModel:
    """The models of the engine at `url`, the first of which answers canaries.

    With --model, whose template and tokens are one model's, only the named ones are served, or the
    first and its adapters. Raises SettingsError for a name that the engine does not offer.
    """
    if not offers:
        raise SettingsError(f"--engine-url: {url} offers no model")
    chosen = _chosen(settings, offers)
    if len(chosen) > MAX_MODELS:
        log.warning("%s: %d models, of which %d are served", url, len(chosen), MAX_MODELS)
    first, *others = chosen[:MAX_MODELS]
    if settings.model is None:  # the name may look like a path, but there is no directory
        model = ServedModel(first.name, first.name, named_template(settings.conv_template))
    else:
        model = describe(settings.model, first.name, settings.conv_template)
    return with_tokenizer(replace(model, others=tuple(others)), settings.tokenizer)


def _chosen(settings: WorkerSettings, offers: Sequence[Offer]) -> list[Offer]:
    by_name = {offer.name: offer for offer in offers}
    names = model_names(settings)
    if settings.model_name in by_name:  # its name has a comma
        names = [settings.model_name]
    for name in names:
        if name not in by_name:
            shown = ", ".join(list(by_name)[:SHOWN])
            raise SettingsError(f"--model-name: {name!r} is not served there: {shown}")
    if names:
        return [by_name[name] for name in names]
    if settings.model is None:
        return list(offers)
    first = next((offer for offer in offers if offer.parent is None), offers[0])
    chosen = [first, *(offer for offer in offers if offer.parent == first.name)]
    if left_out := [offer.name for offer in offers if offer not in chosen]:
        log.warning(
            "--model describes %s: %s of this engine are not served; another worker may",
            first.name,
            ", ".join(left_out[:SHOWN]),
        )
    return chosen
