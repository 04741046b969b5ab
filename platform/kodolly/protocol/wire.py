"""The messages of FastChat's protocol (fschat 0.2.36), and KoDolly's additions to them.

All additions are in one extra object, `kodolly`, which FastChat's own processes ignore. Every field
and endpoint of FastChat keeps its name and meaning.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kodolly.errors import BadRequest

FRAME_END = b"\0"
MAX_FRAME = 64 * 2**20  # bytes

T = TypeVar("T", bound=BaseModel)


class WorkerState(StrEnum):
    """A worker's state. Only READY workers get requests."""

    STARTING = "starting"  # its engine has not made its first token yet
    READY = "ready"
    STALLED = "stalled"  # its engine has requests but makes no token
    DRAINING = "draining"  # finishes its requests and takes no new ones
    LOST = "lost"  # its heartbeats have stopped


class WorkerStatus(BaseModel):
    """FastChat's `worker_status`: the models of a worker, its weight and its load (requests)."""

    model_names: list[str] = Field(min_length=1, max_length=256)
    speed: float = Field(default=1, gt=0)
    queue_length: int = Field(default=0, ge=0)


class Extension(BaseModel):
    """The `kodolly` object: what our own workers add to FastChat's messages."""

    model_config = ConfigDict(extra="ignore")

    state: WorkerState = WorkerState.READY
    engine_url: str | None = None
    # The API needs it, so /watch sends it. /workers, which is for people, leaves it out.
    engine_key: str | None = None
    heart_beat_interval: float = Field(default=5.0, gt=0)  # seconds
    context_length: int | None = None  # tokens of prompt and answer together
    template: str | None = None  # name of the conversation template
    stop: list[str] = Field(default_factory=list)  # strings that end every answer
    guard: list[str] = Field(default_factory=list)  # strings a user may not put into a prompt
    # What the conversation template has a place for, of "developer", "tools" and "documents"; None:
    # the template is not known.
    template_knows: list[str] | None = None
    engine: str | None = (
        None  # its kind, such as "vllm"; of an attached one what its /v1/models says
    )
    # Adapter name -> name of the base model that it is served on.
    parents: dict[str, str] = Field(default_factory=dict)
    version: str = ""


class Registration(BaseModel):
    """Body of /register_worker. `worker_name` is the worker's base URL and its key."""

    worker_name: str = Field(min_length=1, max_length=2048, pattern=r"^https?://")
    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None
    multimodal: bool = False
    kodolly: Extension | None = None


class HeartbeatRequest(BaseModel):
    """Body of /receive_heart_beat."""

    worker_name: str
    queue_length: int = Field(ge=0)
    kodolly: Extension | None = None


class _TextQuery(BaseModel):
    """A body of one text field, which the class names in `field`."""

    field: ClassVar[str]

    @model_validator(mode="before")
    @classmethod
    def _require_text(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get(cls.field), str):
            raise BadRequest(f"{cls.field}: a string is required", param=cls.field)
        return data


class ModelQuery(_TextQuery):
    """Body of /get_worker_address."""

    field = "model"
    model: str


class WorkerQuery(_TextQuery):
    """Body of /deregister_worker and /drain_worker. `worker_name`: the worker's base URL."""

    field = "worker_name"
    worker_name: str


class WorkerExists(BaseModel):
    """Response about one worker. `exist`: whether the controller has it in its table."""

    exist: bool


class WorkerAddress(BaseModel):
    """Response of /get_worker_address: a worker's base URL, "" if none serves the model."""

    address: str


class ModelNames(BaseModel):
    """Response of /list_models and its two variants."""

    models: list[str]


class Load(BaseModel):
    """A controller's answer to /worker_get_status: all its ready workers together."""

    model_names: list[str]
    speed: float
    queue_length: int


class WorkerRow(BaseModel):
    """One worker in the controller's table."""

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
    """One line of the controller's watch stream: the whole table.

    `epoch`: a random id of the controller process. After a restart it differs, and the table is
    incomplete at first: it fills as the workers' heartbeats arrive.
    """

    epoch: str
    version: int
    workers: list[WorkerRow]


def parse(cls: type[T], data: Any) -> T:
    """`data` as a `cls`. Raises BadRequest, which names the first wrong field."""
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"{field or 'body'}: {first['msg']}", param=field or None) from error


def frame(payload: dict[str, Any]) -> bytes:
    """One frame of a worker's stream: JSON and a NUL byte."""
    return orjson.dumps(payload) + FRAME_END


async def frames(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """The frames in a worker's stream, whose chunks may end anywhere. Raises ValueError if one is bad."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(FRAME_END)
        for part in whole:
            if part:
                yield orjson.loads(part)
        if len(rest) > MAX_FRAME:
            raise ValueError(f"a frame of more than {MAX_FRAME} bytes")
