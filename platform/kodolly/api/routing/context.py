"""Whether a request can fit a model's context, by its bytes: no engine need tokenize megabytes to refuse them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from kodolly.api.request import ApiRequest
from kodolly.api.routing.table import Worker, WorkerTable
from kodolly.errors import ContextOverflow

SMALL = 4096  # bytes of a request that are left to the engine whatever its context


def check_fits(request: ApiRequest, table: WorkerTable) -> None:
    """Raises ContextOverflow for a text that fits at no worker of the model that is ready."""
    if request.size <= SMALL:
        return
    workers = table.ready(request.model)
    most = max((longest_text(worker, request.model) for worker in workers), default=math.inf)
    if request.size <= most or request.body.get("truncate_prompt_tokens"):  # nearly every request
        return
    prompts = list(_prompts(request.body))
    # A character is a byte or more, so that megabytes need not be encoded to be counted.
    size = max((sum(map(len, texts)) for texts in prompts), default=0)
    if size <= most:
        size = max(map(_size, prompts), default=0)
    if size <= most:
        return
    extension = max(workers, key=lambda worker: longest_text(worker, request.model)).extension
    assert extension is not None
    assert extension.token_bytes is not None
    raise ContextOverflow(
        f"This model's maximum context length is {extension.context_of(request.model)} tokens, but "
        f"the text has at least {size // extension.token_bytes}.",
        param=request.prompt_field,
    )


def longest_text(worker: Worker, model: str) -> float:
    """Bytes of text beyond which no prompt fits the model's context; infinite if that is not known."""
    extension = worker.extension
    if extension is None or not extension.token_bytes:
        return math.inf
    return extension.token_bytes * (extension.context_of(model) or math.inf)


def _prompts(body: dict[str, Any]) -> Iterator[list[str]]:
    """The texts of each prompt of a request."""
    if "messages" not in body:
        prompt = body.get("prompt", body.get("input"))
        texts = prompt if isinstance(prompt, list) else [prompt]
        yield from ([text] for text in texts if isinstance(text, str))
        return
    chat: list[str] = []
    for message in body["messages"]:
        value = message.get("content") or ""
        parts = [value] if isinstance(value, str) else [part.get("text") for part in value]
        chat += [part for part in parts if isinstance(part, str)]
    yield chat


def _size(texts: list[str]) -> int:
    # Templates drop white space around a text.
    return sum(len(text.strip().encode("utf-8", "surrogatepass")) for text in texts)
