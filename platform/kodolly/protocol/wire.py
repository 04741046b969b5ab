"""FastChat's wire (fschat 0.2.36) and KoDolly's additions to it.

Additions ride in an extra `kodolly` object, which stock FastChat processes ignore. Every field and
endpoint of the stock protocol keeps its name and meaning.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kodolly.errors import BadRequest

FRAME_END = b"\0"
MAX_FRAME = 64 * 2**20

T = TypeVar("T", bound=BaseModel)


class WorkerState(StrEnum):
    """What the controller knows of a worker; only READY ones get requests."""

    STARTING = "starting"
    READY = "ready"
    STALLED = "stalled"  # its engine has work, yet makes no token
    DRAINING = "draining"
    LOST = "lost"


class WorkerStatus(BaseModel):
    """FastChat's worker_status: what a worker serves and how busy it is."""

    model_names: list[str] = Field(min_length=1, max_length=256)
    speed: float = Field(default=1, gt=0)
    queue_length: int = Field(default=0, ge=0)


class Extension(BaseModel):
    """The `kodolly` object: what our worker tells beyond FastChat's protocol."""

    model_config = ConfigDict(extra="ignore")

    state: WorkerState = WorkerState.READY
    engine_url: str | None = None
    # Followers of the watch stream need it; people who read /workers do not get it.
    engine_key: str | None = None
    heart_beat_interval: float = Field(default=5.0, gt=0)
    context_length: int | None = None
    template: str | None = None
    stop: list[str] = Field(default_factory=list)
    guard: list[str] = Field(default_factory=list)
    # Of each adapter among the model names, the base that serves it.
    parents: dict[str, str] = Field(default_factory=dict)
    version: str = ""


class Registration(BaseModel):
    """Body of /register_worker. `worker_name` is the worker's base URL and its key."""

    worker_name: str = Field(min_length=1, max_length=2048, pattern=r"^https?://")
    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None
    multimodal: bool = False
    kodolly: Extension | None = None


class HeartBeat(BaseModel):
    """Body of /receive_heart_beat."""

    worker_name: str
    queue_length: int = Field(ge=0)
    kodolly: Extension | None = None


class WorkerRow(BaseModel):
    """One worker of the controller's table, as the watch stream sends it."""

    name: str
    model_names: list[str]
    speed: float
    queue_length: int
    state: WorkerState
    multimodal: bool = False
    kodolly: Extension | None = None

    def serves(self, model: str) -> bool:
        """Whether a request for `model` may go to this worker now."""
        return self.state is WorkerState.READY and model in self.model_names


class Snapshot(BaseModel):
    """One line of the watch stream: the whole table.

    `epoch` names one life of a controller; a new one starts with an empty table that fills as
    workers beat again, so followers must not take its first rows for the whole truth.
    """

    epoch: str
    version: int
    workers: list[WorkerRow]


def parse(cls: type[T], data: Any) -> T:
    """`data` as a `cls`; BadRequest that names the field otherwise."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{field or 'body'}: {first['msg']}", param=field or None) from error


def frame(payload: dict[str, Any]) -> bytes:
    """One NUL-ended frame of a worker's stream."""
    return orjson.dumps(payload) + FRAME_END


async def frames(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The frames of a worker's byte stream, however it is cut. Raises ValueError on a bad frame."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(FRAME_END)
        for part in whole:
            if part:
                yield orjson.loads(part)
        if len(rest) > MAX_FRAME:
            raise ValueError(f"a frame of more than {MAX_FRAME} bytes")
