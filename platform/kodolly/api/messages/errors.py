"""Errors as clients of Anthropic's API know them."""

from __future__ import annotations

from typing import Any

from kodolly.api.messages.to_chat import CLIENT_NAMES
from kodolly.errors import ApiError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def envelope(error: ApiError, request_id: str) -> dict[str, Any]:
    """Anthropic's body for an error, which names fields as the client does."""
    client_name = CLIENT_NAMES.get(error.param or "")
    message = error.message
    if client_name and error.param and message.startswith(error.param):
        message = client_name + message.removeprefix(error.param)
    return error_body(kind(error.status), message) | {"request_id": request_id}


def error_body(error_type: str, message: str) -> dict[str, Any]:
    """The error of a response, and of an event within a stream."""
    return {"type": "error", "error": {"type": error_type, "message": message}}


def kind(status: int) -> str:
    """The `type` of an error of this HTTP status."""
    return TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
