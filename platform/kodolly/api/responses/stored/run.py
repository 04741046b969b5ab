"""A stored response while this process makes it: every event is committed before anybody gets it.

Whoever created it may leave: it goes on. Readers of this process get the bytes from here. If the
database goes away, the answer goes on without it, and says `store: false` at its end. If another
process has taken the response over, this one stops and its readers follow the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from kodolly.api.client_output import ClientOutput, EventSink
from kodolly.api.relay.client_stream import ClientStream
from kodolly.api.responses.deltas import Delta, DeltaReader, chat_event
from kodolly.api.responses.events import EventMachine, encode, replay
from kodolly.api.responses.prepared import Prepared
from kodolly.api.responses.stored.reader import Moved, Reader
from kodolly.api.responses.writer import end_delta, with_end
from kodolly.errors import ApiError, KodollyError, StoreUnavailable
from kodolly.store.records import StoredEvents

if TYPE_CHECKING:
    from kodolly.store.store import Store

log = logging.getLogger(__name__)

Json = dict[str, Any]
Stream = Callable[[ClientStream], Awaitable[None]]
# Of the response object at the end, what the store keeps beside the request and the output items.
RESULT = ("usage", "error", "incomplete_details", "completed_at", "last_sequence_number")


class _Batch(NamedTuple):
    """Events that one callback of the engine's stream made. `deltas`: of how many deltas."""

    deltas: int
    data: bytes
    last_sequence_number: int


class Run:
    """One response in the making. `over`: set at its end, or when it is made elsewhere.

    `failure`: why it could not even begin; then there is no such response.
    """

    def __init__(self, prepared: Prepared, store: Store, *, is_public: bool) -> None:
        """`is_public`: somebody has its id already, so it may fail but not vanish."""
        self.prepared = prepared
        self._is_public = is_public
        self.machine = EventMachine(prepared.base)
        self.over = asyncio.Event()
        self.failure: ApiError | None = None
        self.last_sequence_number = -1  # of the newest event that readers have
        self._store = store
        self._chat_events = DeltaReader()
        self._unread: list[bytes] = []  # events of the chat, which are read before the next commit
        self._deltas: list[Delta] = []
        self._opening_ids: list[int] = []  # of deltas that were not given to the store yet
        self._appended = 0  # deltas that were
        self._committed = 0  # deltas that it has committed
        self._uncommitted: deque[_Batch] = deque()
        self._end: _Batch | None = None
        self._readers: set[Reader] = set()
        self._is_stored = True
        self._has_ended = False  # its last delta is made
        self._has_moved = False
        self._is_cancelled = asyncio.Event()
        self._finishing: asyncio.Task[None] | None = None
        self._opening = encode(self.machine.begin())

    @property
    def id(self) -> str:
        """The response's id."""
        return self.prepared.id

    async def make(self, stream: Stream, events: StoredEvents | None) -> None:
        """Makes the answer, from its start or from where `events`, stored by another process, end.

        `stream`: has the models answer.
        """
        with self._store.follower.cancellable(self.id) as cancelled:
            streaming = asyncio.create_task(self._answer(stream, events))
            waiting = [asyncio.create_task(each.wait()) for each in (cancelled, self._is_cancelled)]
            try:
                await asyncio.wait((streaming, *waiting), return_when=asyncio.FIRST_COMPLETED)
                if not streaming.done():
                    self._read()
                    self._take([end_delta(self._chat_events.usage, cancelled=True)], [])
            finally:
                for task in (streaming, *waiting):
                    task.cancel()
                await asyncio.gather(streaming, *waiting, return_exceptions=True)
        if self._finishing is not None:
            await self._finishing

    @property
    def has_moved(self) -> bool:
        """Whether another process makes it, or will."""
        return self._has_moved

    def cancel(self) -> None:
        """Ends the response as cancelled."""
        self._is_cancelled.set()

    def attach(self, output: ClientOutput, after: int = -1, *, waits: bool = False) -> Reader:
        """A reader that gets every event after number `after`: what is there at once, then the rest.

        `waits`: nothing is sent before the first delta is there.
        """
        reader = Reader(output, self._opening if waits and not self._committed else b"")
        if not (waits and not self._committed):
            machine = EventMachine(self.prepared.base)
            events = [each for each in machine.begin() if each["sequence_number"] > after]
            events += replay(machine, self._deltas[: self._committed], after)
            if events and not self.over.is_set():
                reader.push(encode(events))
        self._readers.add(reader)
        if self.over.is_set():
            self._end_reader(reader)
        return reader

    def detach(self, reader: Reader) -> None:
        """The client has gone."""
        self._readers.discard(reader)

    def response(self) -> Json:
        """The response object as of the newest event that is committed."""
        return response_of(self.prepared.base, self._deltas[: self._committed])

    def move(self) -> None:
        """This process makes no more of it: another one does, or will."""
        if not self.over.is_set():
            self._has_moved = True
            self._store.flusher.forget(self.id)
            self._set_over()

    async def _answer(self, stream: Stream, events: StoredEvents | None) -> None:
        try:
            client = self._client_stream(events)
            if self._has_ended:
                self._finishing = asyncio.create_task(self._finish())
            else:
                await stream(client)
                self._read()
        except ApiError as error:
            self._fail(error)
        except Exception:
            log.exception("%s: a stored response failed by our own fault", self.id)
            self._fail(ApiError("Internal error."))

    def _client_stream(self, events: StoredEvents | None) -> ClientStream:
        """A new stream or, with stored events, all of this brought to where they end."""
        chat = self.prepared.chat
        sink = EventSink(chat.request_id, self._consume)
        if events is None or not events.deltas:
            return ClientStream(chat, sink, shows_ids=True)
        for delta in events.deltas:
            self.machine.feed(delta)
        self._deltas = list(events.deltas)
        self._appended = self._committed = len(events.deltas)
        self.last_sequence_number = self.machine.sequence_number - 1
        self._has_ended = self.machine.status != "in_progress"
        base = self.prepared.base
        head = {
            "id": f"chatcmpl-{base['id']}",
            "object": "chat.completion.chunk",
            "created": base["created_at"],
            "model": base["model"],
        }
        sent = chat_event(events.deltas, events.token_ids, head)
        return ClientStream.restored(chat, sink, [sent], shows_ids=True)

    def _fail(self, error: ApiError) -> None:
        self._read()
        if self._deltas or self._is_public:
            fault = {"code": error.code or error.type, "message": error.message}
            self._take([end_delta(error=fault)], [])
        elif not self._has_ended:
            self.failure = error
            self._set_over()

    def _consume(self, events: bytes) -> None:
        """Whole events of the chat. Nobody may have them before the next commit, so most are read just then."""
        if self._has_ended or self._has_moved:
            return
        self._unread.append(events)
        if self._appended and self._is_stored:
            if len(self._unread) == 1:
                self._store.flusher.before_commit(self.id, self._read_or_fail)
        else:
            self._read()

    def _read_or_fail(self) -> None:
        try:
            self._read()
        except Exception:
            log.exception("%s: a stored response failed by our own fault", self.id)
            self._fail(ApiError("Internal error."))
            self._is_cancelled.set()

    def _read(self) -> None:
        """Reads the events that have come."""
        if not self._unread:
            return
        events = b"".join(self._unread)
        self._unread.clear()
        batch = self._chat_events.read(events)
        self._take(with_end(batch, self._chat_events.usage), batch.token_ids)

    def _take(self, deltas: list[Delta], token_ids: list[int]) -> None:
        if self._has_ended or self._has_moved or not deltas:
            return
        events: list[Json] = []
        for delta in deltas:
            if isinstance(delta, dict) and "end" in delta and not self._is_stored:
                self.machine.mark_unstored()
            events += self.machine.feed(delta)
        self._deltas += deltas
        self._opening_ids += token_ids
        self._has_ended = self.machine.status != "in_progress"
        if not (self._appended or events):
            return  # such as the prompt's token ids: they are stored with the first text, which need not wait then
        first, self._appended = self._appended, len(self._deltas)
        deltas, token_ids = self._deltas[first:], self._opening_ids
        self._opening_ids = []
        last = self.machine.sequence_number - 1
        self._uncommitted.append(_Batch(len(deltas), encode(events), last))
        self._store.flusher.append(self.id, first, deltas, token_ids, self._deliver)
        if self._has_ended:
            self._finishing = asyncio.create_task(self._finish())

    def _deliver(self, error: KodollyError | None, appends: int) -> None:
        """The events of the oldest uncommitted batches are stored, or never will be."""
        if self._has_moved:
            return
        if isinstance(error, StoreUnavailable):
            self._is_stored = False
        elif error is not None:
            log.warning("%s: %s", self.id, error)
            self._is_cancelled.set()
            return self.move()
        batches = [self._uncommitted.popleft() for _ in range(appends)]
        if self._has_ended and not self._uncommitted:
            self._end = (
                batches.pop()
            )  # nobody hears of the end before the response itself is finished
        self._publish(batches)

    def _publish(self, batches: list[_Batch]) -> None:
        if not batches:
            return
        self._committed += sum(batch.deltas for batch in batches)
        self.last_sequence_number = batches[-1].last_sequence_number
        data = b"".join([batch.data for batch in batches])
        if data:
            for reader in self._readers:
                reader.push(data)

    async def _finish(self) -> None:
        response = self.machine.response()
        result = {name: response[name] for name in RESULT}
        try:
            await self._store.responses.finish(
                self.id, response["status"], result, response["output"]
            )
        except StoreUnavailable as error:
            log.warning("%s: its end is not stored: %s", self.id, error)
        except KodollyError as error:
            log.warning("%s: %s", self.id, error)
            return self.move()
        if self._end is not None:
            self._publish([self._end])
        self._set_over()

    def _set_over(self) -> None:
        self.over.set()
        for reader in self._readers:
            self._end_reader(reader)

    def _end_reader(self, reader: Reader) -> None:
        reader.end(Moved() if self._has_moved else self.failure)


def response_of(base: Json, deltas: Iterable[Delta]) -> Json:
    """The response object that deltas make of its beginning."""
    machine = EventMachine(base)
    machine.begin()
    is_empty = True
    for delta in deltas:
        is_empty = False
        machine.feed(delta)
    response = machine.response()
    return response | {"status": "queued"} if is_empty and base["background"] else response
