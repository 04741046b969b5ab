"""The messages of FastChat's protocol (fschat 0.2.36), and KoDolly's additions to them.

All additions are in one extra object, `kodolly`, which FastChat's own processes ignore. Every field
and endpoint of FastChat keeps its name and meaning.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Annotated, Any, ClassVar, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from kodolly.errors import BadRequest
from kodolly.protocol.addresses import AddressError, canonical_url

FRAME_END = b"\0"
MAX_FRAME = 64 * 2**20  # bytes

T = TypeVar("T", bound=BaseModel)

MAX_URL = 2048  # characters
MAX_QUEUE = 2**31 - 1  # requests
MAX_MARKERS = 16384  # strings of a template or tokenizer: some tokenizers have thousands


def _checked_url(text: str) -> str:
    return _canonical(text, with_path=False)


def _checked_engine_url(text: str) -> str:
    return _canonical(text, with_path=True)


def _canonical(text: str, *, with_path: bool) -> str:
    try:
        return canonical_url(text, with_path=with_path)
    except AddressError as error:
        raise PydanticCustomError("address", "{reason}", {"reason": str(error)}) from None


def _without_controls(text: str) -> str:
    if any(character < " " or character == "\x7f" for character in text):
        raise PydanticCustomError("controls", "control characters are not allowed")
    return text


# A worker's base URL: http://host:port, in the one spelling that names its row in the table.
WorkerUrl = Annotated[str, Field(min_length=1, max_length=MAX_URL), AfterValidator(_checked_url)]
# An engine's root, which may be behind a path.
EngineUrl = Annotated[
    str, Field(min_length=1, max_length=MAX_URL), AfterValidator(_checked_engine_url)
]
ModelName = Annotated[
    str, StringConstraints(min_length=1, max_length=512), AfterValidator(_without_controls)
]
Marker = Annotated[str, StringConstraints(max_length=1024)]
Markers = Annotated[list[Marker], Field(max_length=MAX_MARKERS, fail_fast=True)]


class WorkerState(StrEnum):
    """A worker's state. Only READY workers get requests."""

    STARTING = "starting"  # its engine has not made its first token yet
    READY = "ready"
    STALLED = "stalled"  # its engine has requests but makes no token
    DRAINING = "draining"  # finishes its requests and takes no new ones
    LOST = "lost"  # its heartbeats have stopped


class WorkerStatus(BaseModel):
    """FastChat's `worker_status`: the models of a worker, its weight and its load (requests)."""

    model_names: list[ModelName] = Field(min_length=1, max_length=256, fail_fast=True)
    speed: float = Field(default=1, ge=1e-6, le=1e6)
    queue_length: int = Field(default=0, ge=0, le=MAX_QUEUE)


class Defaults(BaseModel):
    """What a model's requests get where the client says nothing: OpenAI's fields, and vLLM's."""

    model_config = ConfigDict(extra="forbid", strict=True)

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    # Variables of the chat template, such as {"enable_thinking": false}.
    chat_template_kwargs: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(max_length=64)],
                bool | int | float | Annotated[str, StringConstraints(max_length=256)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None


class Extension(BaseModel):
    """The `kodolly` object: what our own workers add to FastChat's messages."""

    model_config = ConfigDict(extra="ignore")

    state: WorkerState = WorkerState.READY
    engine_url: EngineUrl | None = None
    # The API needs it, so /watch sends it. /workers, which is for people, leaves it out. It goes
    # into a header of every request to the engine.
    engine_key: str | None = Field(default=None, max_length=4096, pattern=r"^[!-~]*$")
    heart_beat_interval: float = Field(default=5.0, gt=0, le=3600)  # seconds
    # Tokens of prompt and answer together.
    context_length: int | None = Field(default=None, ge=1, le=2**31 - 1)
    # The same for models of this worker whose context is another one.
    context_lengths: dict[ModelName, Annotated[int, Field(ge=1, le=2**31 - 1)]] = Field(
        default_factory=dict, max_length=256
    )
    # Bytes of text that one token stands for at most.
    token_bytes: int | None = Field(default=None, ge=1, le=2**20)
    chat_only: bool = False  # the engine has no /v1/completions
    pooling: bool = False  # the engine makes embeddings and no text
    # What a client may ask the worker for, of "chat", "completions", "embeddings", "tools" and
    # "structured_outputs", as far as is known; None: the worker does not say.
    capabilities: list[Annotated[str, Field(max_length=64)]] | None = Field(
        default=None, max_length=16
    )
    owner: str | None = Field(default=None, max_length=256)  # whose model it is
    # Another name -> the model of this worker that it stands for.
    aliases: dict[ModelName, ModelName] = Field(default_factory=dict, max_length=256)
    defaults: Defaults | None = None
    template: str | None = Field(default=None, max_length=256)  # name of the template
    stop: Markers = Field(default_factory=list)  # strings that end every answer
    guard: Markers = Field(default_factory=list)  # strings a user may not put into a prompt
    # What the conversation template has a place for, of "developer", "tools" and "documents"; None:
    # the template is not known.
    template_knows: list[Annotated[str, Field(max_length=64)]] | None = Field(
        default=None, max_length=16
    )
    # The engine's kind, such as "vllm"; of an attached one what its /v1/models says.
    engine: str | None = Field(default=None, max_length=256)
    # The engine begins an answer with the tokens in a request's `vllm_xargs.kd_ids`: what cannot be
    # continued from tokens alone is replayed there.
    forced_ids: bool = False
    # Adapter name -> name of the base model that it is served on.
    parents: dict[ModelName, ModelName] = Field(default_factory=dict, max_length=256)
    version: str = Field(default="", max_length=64)

    def context_of(self, model: str) -> int | None:
        """Tokens of prompt and answer together for one of the worker's models; None if unknown."""
        return self.context_lengths.get(model, self.context_length)


class Registration(BaseModel):
    """Body of /register_worker. `worker_name` is the worker's base URL and its key."""

    worker_name: WorkerUrl
    check_heart_beat: bool = True
    worker_status: WorkerStatus | None = None
    multimodal: bool = False
    kodolly: Extension | None = None


class HeartbeatRequest(BaseModel):
    """Body of /receive_heart_beat."""

    worker_name: WorkerUrl
    queue_length: int = Field(ge=0, le=MAX_QUEUE)
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
    worker_name: WorkerUrl


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
    """One worker in the controller's table. `number`: its short name in a `Change`'s loads."""

    name: str
    model_names: list[str]
    speed: float
    queue_length: int
    state: WorkerState
    multimodal: bool = False
    kodolly: Extension | None = None
    number: int = 0

    def serves(self, model: str) -> bool:
        """Whether a request for `model` may go to this worker now."""
        return self.state is WorkerState.READY and model in self.model_names


class Snapshot(BaseModel):
    """The first line of the controller's watch stream: the whole table.

    `epoch`: a random id of the controller process. After a restart it differs, and the table is
    incomplete at first: it fills as the workers' heartbeats arrive.
    """

    epoch: str
    version: int
    workers: list[WorkerRow]


class Change(BaseModel):
    """A later line of the watch stream: what has changed between the versions `since` and `version`.

    It is right for every table that is not older than `since`. `rows`: new rows, and rows of which
    anything but the load changed. `removed`: names. `loads`: (row's number, queue length).
    """

    epoch: str
    since: int
    version: int
    rows: list[WorkerRow] = Field(default_factory=list)
    removed: list[str] = Field(default_factory=list)
    loads: list[tuple[int, int]] = Field(default_factory=list)


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
