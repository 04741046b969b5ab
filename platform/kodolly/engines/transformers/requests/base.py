"""What all requests have in common, and how one is read."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Annotated, Any, ClassVar, NoReturn, TypeVar

from pydantic import BaseModel, Field, ValidationError

from kodolly.errors import BadRequest
from kodolly.protocol import parameters
from kodolly.protocol.faults import bad_request
from kodolly.protocol.request_bounds import check_bounds

Ids = list[Annotated[int, Field(ge=0, lt=2**31)]]


class EngineRequest(BaseModel):
    """A body of this engine. `unhonoured`: fields that it has no use for (see parameters.py)."""

    unhonoured: ClassVar[Mapping[str, Container[object]]] = {}


R = TypeVar("R", bound=EngineRequest)


def check(kind: type[R], data: dict[str, Any]) -> R:
    """`data` as a request of this kind. Raises BadRequest, which names the first wrong field."""
    given = {name: value for name, value in data.items() if value is not None}
    parameters.refuse_unhonoured(given, kind.unhonoured, "transformers")
    check_bounds(given)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise bad_request(error, given) from error


def refuse(field: str, reason: str) -> NoReturn:
    """Raises BadRequest with a message that begins with `field`."""
    raise BadRequest(f"{field} {reason}", param=field)
