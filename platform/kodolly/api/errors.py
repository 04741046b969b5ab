"""How a worker can fail a request, and what an engine's error means to the client."""

from __future__ import annotations

import re
from typing import Any

from kodolly.errors import (
    ApiError,
    BadRequest,
    ContextOverflow,
    EngineFailed,
    NoWorker,
    OutOfDescriptors,
    Overloaded,
    TooLarge,
)
from kodolly.http import descriptors
from kodolly.protocol.engine_errors import error_message, error_object, retry_after

RETRY_AFTER = {"Retry-After": "2"}
# In the messages of vLLM, llama.cpp, SGLang and TGI.
OVERFLOW_WORDS = (
    "maximum context length",
    "context_length_exceeded",
    "longer than the maximum",
    "available context size",
    "longer than the model's context",
    "`max_new_tokens` must be <=",
    "cannot be greater than max_model_len",
)
# The same as an error's `code` or `type`.
OVERFLOW_CODES = (ContextOverflow.code, "exceed_context_size_error")
NO_FAULT = frozenset({"model", "stream", "user", "input"})  # words that name no field in a message
GRAMMAR_FIELDS = ("structured_outputs", "response_format", "tools")
# Statuses that another worker may not answer with; 401 and 403 mean our own key, 500 a broken engine.
RETRIED = (401, 403, 408, 429, 500, 502, 503, 504)


class WorkerFailed(Exception):
    """The worker failed; another one may be tried.

    `client_error`: what the client is told if no other worker is left; None: to try again later.
    `did_work`: the worker had taken the request, so a retry costs an engine the work once more.
    `engine_crashed`: the engine broke down while it worked on the request, perhaps because of it.
    `our_fault`: this process could not send the request, and nothing is wrong with the worker.
    `busy`: what the client is told if every worker was too busy for too long.
    """

    def __init__(
        self,
        message: str,
        client_error: ApiError | None = None,
        *,
        did_work: bool = True,
        engine_crashed: bool = False,
        our_fault: bool = False,
        busy: ApiError | None = None,
    ) -> None:
        super().__init__(message)
        self.client_error = client_error
        self.did_work = did_work
        self.engine_crashed = engine_crashed
        self.our_fault = our_fault
        self.busy = busy


def out_of_descriptors() -> WorkerFailed:
    """This process has too many open files to send the request."""
    why = f"was not asked: {descriptors.limit()} open files are all that this process may have"
    return WorkerFailed(why, OutOfDescriptors(), did_work=False, our_fault=True)


def error_of_status(status: int, body: bytes, retry: bytes = b"") -> WorkerFailed | ApiError:
    """What an engine's error status means: try another worker, or tell the client its mistake.

    `retry`: its Retry-After header.
    """
    error = api_error(status, body, retry)
    if status not in RETRIED:
        return error
    return WorkerFailed(
        f"answered {status}: {error_message(body)}",
        error if isinstance(error, EngineFailed) else None,
        engine_crashed=status == 500,
        busy=error if isinstance(error, Overloaded | NoWorker) else None,
    )


def named(
    error: WorkerFailed | ApiError, body: dict[str, Any], prompt: str
) -> WorkerFailed | ApiError:
    """The error with the field of the client's `body` that is at fault, where an engine names none.

    `prompt`: the field with the text. vLLM names some only in its message ("top_k must be ..."), or as it calls them itself.
    """
    if not isinstance(error, BadRequest) or _field(error.param) in body:
        return error
    if isinstance(error, ContextOverflow):
        limited = error.param == "max_tokens" and "max_completion_tokens" in body
        error.param = "max_completion_tokens" if limited else prompt
        return error
    spaced = {name.replace("_", " "): name for name in body if "_" in name}
    if named_so := [name for text, name in spaced.items() if text in error.message.lower()]:
        error.param = named_so[0]
        return error
    if "grammar" in error.message.lower():
        error.param = next((name for name in GRAMMAR_FIELDS if body.get(name)), error.param)
        return error
    words = re.findall(r"[a-z_]+", error.message.replace("ContentPart", " prompt "))
    aliases = {"prompt": prompt, "multimodal": prompt, "vocabulary": prompt, "tool": "tools"}
    fields = [word if word in body else aliases.get(word) for word in words]
    faulty = (f for f in fields if f in body and (f == prompt or f not in NO_FAULT))
    error.param = next(faulty, error.param)
    return error


def _field(param: str | None) -> str:
    return re.split(r"[.\[]", param or "", maxsplit=1)[0]


def error_of_event(data: bytes) -> WorkerFailed | ApiError:
    """What an error event within an engine's stream means, by the status in its `code`."""
    code = error_object(data).get("code")
    status = code if isinstance(code, int) and 400 <= code < 600 else 500
    return error_of_status(status, data)


def api_error(status: int, body: bytes, retry: bytes = b"") -> ApiError:
    """The error a client should see for an engine's answer of `status` with `body`."""
    error = error_object(body)
    message = str(error["message"])
    field = error.get("param")
    # vLLM names fields as body.messages, or body.1 for a place in the text.
    param = field.removeprefix("body.") if isinstance(field, str) else None
    if status in (429, 503):
        seconds = retry_after(retry)
        headers = {"Retry-After": seconds} if seconds else RETRY_AFTER
        if status == 429:
            return Overloaded(message, headers=headers)
        return NoWorker(message, headers=headers, code="overloaded")
    if status == 413:
        return TooLarge(message)
    if status in (400, 404, 422):
        overflow = any(words in message for words in OVERFLOW_WORDS)
        if overflow or error.get("code") in OVERFLOW_CODES or error.get("type") in OVERFLOW_CODES:
            return ContextOverflow(message, param=param)
        return BadRequest(message, param=param)
    # 401 and 403 mean that our own key was refused: nothing a client could mend.
    return EngineFailed(f"the engine answered {status}: {message}")
