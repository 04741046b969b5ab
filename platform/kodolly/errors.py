"""Every error that KoDolly raises itself.

KodollyError
├── SettingsError         a flag, variable or file holds a value that cannot be used
├── EngineError           the engine beside a worker
│   ├── EngineStartError  it could not be started, or ended before it made a token
│   └── EngineCallError   it answered a call with an error, or not at all
│       ├── EngineSilent  it did not answer in time
│       └── NoDescriptor  it was not called: this process has no file descriptor left
├── ControllerError       the controller refused, or cannot be reached
├── StoreError            the store of responses refused
│   ├── Fenced            another process goes on with the response
│   └── ResponseDeleted   its owner has deleted the response
└── ApiError              an answer to an API client, in OpenAI's envelope
    ├── BadRequest              400
    │   ├── ContextOverflow     400, code context_length_exceeded
    │   └── RequestFault        400, code request_fault
    ├── Unauthorized            401
    ├── Forbidden               403, code forbidden
    ├── ForeignOrigin           403, code foreign_origin
    ├── StoreFull               403, code store_full
    ├── ModelNotFound           404
    ├── NotFound                404
    ├── RequestTimeout          408
    ├── TooLarge                413
    ├── NotJson                 415, code unsupported_media_type
    ├── HostNotAllowed          421, code host_not_allowed
    ├── Overloaded              429, with Retry-After
    ├── EngineFailed            502
    ├── NoWorker                503, with Retry-After
    ├── StoreUnavailable        503, with Retry-After
    ├── OutOfDescriptors        503, with Retry-After
    └── TooManyConnections      503, with Retry-After
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class KodollyError(Exception):
    """Base of all errors that KoDolly raises itself. Their text is for people."""


class SettingsError(KodollyError):
    """A flag, environment variable or file holds a value that cannot be used."""


class EngineError(KodollyError):
    """The engine beside a worker failed."""


class EngineStartError(EngineError):
    """The engine could not be started, or ended before it made its first token."""


class EngineCallError(EngineError):
    """The engine answered a call with an error, or not at all.

    `status` is its HTTP status, or None when no answer came.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class EngineSilent(EngineCallError):
    """The engine did not answer in time: frozen, overloaded, or not reachable. Its status is None."""


class NoDescriptor(EngineCallError):
    """The engine was not called: this process has no file descriptor left. Its status is None."""


class ControllerError(KodollyError):
    """The controller refused a call or cannot be reached.

    `status` is its HTTP status, or None when no answer came.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class StoreError(KodollyError):
    """The store of responses refused, or cannot be used by this program."""


class Fenced(StoreError):
    """This process was taken for dead: another one goes on with the response, and this one stops."""


class ResponseDeleted(StoreError):
    """The response was deleted while it was made."""


class ApiError(KodollyError):
    """An answer to an API client: HTTP status and OpenAI's error envelope."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.code
        self.headers = dict(headers or {})

    def envelope(self) -> dict[str, Any]:
        """OpenAI's body for this error: `{"error": {message, type, param, code}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class BadRequest(ApiError):
    """The request itself is wrong; `param` names the field."""

    status = 400
    type = "invalid_request_error"


class ContextOverflow(BadRequest):
    """Prompt and answer do not fit the model's context."""

    code = "context_length_exceeded"


class RequestFault(BadRequest):
    """This request's own values made an engine fail. It is not retried, and no worker is blamed."""

    code = "request_fault"


class Unauthorized(ApiError):
    """No API key, or an unknown one."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class ForeignOrigin(ApiError):
    """A browser sends it for another site's page."""

    status = 403
    type = "invalid_request_error"
    code = "foreign_origin"


class Forbidden(ApiError):
    """The caller is known, and may not do this."""

    status = 403
    type = "invalid_request_error"
    code = "forbidden"


class StoreFull(ApiError):
    """The client keeps as much as it may, and nothing of it can go."""

    status = 403
    type = "invalid_request_error"
    code = "store_full"


class ModelNotFound(ApiError):
    """No worker has ever offered this model."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class NotFound(ApiError):
    """There is nothing of that id, or it is another client's."""

    status = 404
    type = "invalid_request_error"


class RequestTimeout(ApiError):
    """A client has taken too long to send its request."""

    status = 408
    type = "invalid_request_error"
    code = "request_timeout"

    def __init__(self, part: str, seconds: float) -> None:
        """`part`: of the request, head or body. `seconds`: that it may take."""
        super().__init__(f"The {part} of the request did not come within {seconds:g} seconds.")


class TooLarge(ApiError):
    """The request body is over the bound."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class NotJson(ApiError):
    """The body is not declared as JSON, so any web page could have sent it."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class HostNotAllowed(ApiError):
    """The request names a host that this server does not go by."""

    status = 421
    type = "invalid_request_error"
    code = "host_not_allowed"


class Overloaded(ApiError):
    """Too many requests for the model run and wait already."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"


class EngineFailed(ApiError):
    """Every worker that was tried failed before the first byte of an answer."""

    status = 502
    type = "server_error"
    code = "engine_error"


class NoWorker(ApiError):
    """The model is known but no worker can take the request now."""

    status = 503
    type = "server_error"
    code = "no_worker"


class StoreUnavailable(ApiError):
    """The store of responses cannot be reached, or does not answer."""

    status = 503
    type = "server_error"
    code = "store_unavailable"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"Retry-After": "2"})


class OutOfDescriptors(ApiError):
    """This process has no file descriptor left. No worker or client is to blame."""

    status = 503
    type = "server_error"
    code = "out_of_file_descriptors"

    def __init__(self) -> None:
        super().__init__(
            "The server has too many open files. Try again in a moment.",
            headers={"Retry-After": "2"},
        )


class TooManyConnections(ApiError):
    """This process has as many connections as it may."""

    status = 503
    type = "server_error"
    code = "too_many_connections"

    def __init__(self) -> None:
        super().__init__(
            "The server has too many connections. Try again in a moment.",
            headers={"Retry-After": "2"},
        )
