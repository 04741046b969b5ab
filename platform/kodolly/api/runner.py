"""One request to the models: wait for a place, try workers until one has answered.

Every face of the API comes to this: chat and text completions, and what is made of chats.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from kodolly.api.admission.admission import Admission, Ticket, class_of
from kodolly.api.admission.queue_position import queue_events
from kodolly.api.client_output import ClientStalled
from kodolly.api.errors import WorkerFailed
from kodolly.api.fastchat_worker.relay import FastChatRelay
from kodolly.api.pings import Pings
from kodolly.api.relay.client_stream import ClientStream
from kodolly.api.relay.relay import Relay
from kodolly.api.relay.retry import RetryBudget, RetryState
from kodolly.api.request import ApiRequest, with_preset
from kodolly.api.routing.context import check_fits
from kodolly.api.routing.router import Booking, Router
from kodolly.api.routing.table import Worker, WorkerTable
from kodolly.api.sse import LOST, error_event
from kodolly.errors import ApiError, ContextOverflow, EngineFailed, NoWorker
from kodolly.observe.requests import BROKEN, CANCELLED, RequestMetrics
from kodolly.protocol.request_bounds import may_break_engine

log = logging.getLogger(__name__)

T = TypeVar("T")

SHUTTING_DOWN = "The server is shutting down."
INTERNAL_ERROR = "Internal error."


@dataclass(frozen=True)
class CompletionRunner:
    """Answers requests of one API process."""

    admission: Admission
    table: WorkerTable
    router: Router
    retry_budget: RetryBudget
    relay: Relay
    fastchat_relay: FastChatRelay
    pings: Pings
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    async def whole(self, request: ApiRequest, key: str) -> bytes:
        """The body of a whole answer. Raises ApiError."""
        with request.measurement.by(self.metrics):
            request = self._preset(request)
            check_fits(request, self.table)
            async with self._ticket(request, key):
                request.measurement.admitted()
                return await self._whole(request)

    async def at_once(self, request: ApiRequest) -> bytes:
        """The same without a place in the queue, for what costs an engine no step. Raises ApiError."""
        with request.measurement.by(self.metrics):
            return await self._whole(self._preset(request))

    async def _whole(self, request: ApiRequest) -> bytes:
        async def attempt(worker: Worker) -> bytes:
            return await self._relay_for(worker).answer(request, worker)

        return await self._try_workers(request, attempt, None)

    async def stream(
        self, request: ApiRequest, key: str, stream: ClientStream, *, wants_position: bool = False
    ) -> None:
        """Writes a streamed answer to the stream's output, and closes that.

        `wants_position`: the stream begins with events that say where in the queue the request
        stands. Raises ApiError as long as the output has not started; after that, an error is the
        stream's last event. Raises ClientStalled, and CancelledError when its reader has gone.
        """
        with request.measurement.by(self.metrics):
            request = self._preset(request)
            check_fits(request, self.table)
            await self._stream(request, key, stream, wants_position=wants_position)

    async def _stream(
        self, request: ApiRequest, key: str, stream: ClientStream, *, wants_position: bool
    ) -> None:
        async def attempt(worker: Worker) -> None:
            await self._relay_for(worker).stream(request, worker, stream)

        output, measurement = stream.output, request.measurement
        ticket = self._ticket(request, key)
        self.pings.add(output)
        try:
            try:
                if wants_position:
                    async with queue_events(ticket, output):
                        await ticket.enter()
                else:
                    await ticket.enter()
                measurement.admitted()
                await self._try_workers(request, attempt, stream)
            finally:
                ticket.leave()
        except asyncio.CancelledError:
            # The client has gone, or this process is told to end and its drain timeout is over.
            measurement.outcome = CANCELLED
            if output.has_started:
                await output.write(error_event(SHUTTING_DOWN, "shutting_down"))
                await output.close()
            raise
        except ApiError as error:
            if not output.has_started:
                raise
            if stream.has_answer and isinstance(error, NoWorker):
                error = EngineFailed(LOST, code="worker_lost")
            measurement.outcome = BROKEN
            await output.write(error_event(error.message, error.code or error.type, error.type))
        except ClientStalled:
            raise
        except (
            Exception
        ):  # our own fault: a stream that is cut off would look like a broken network
            if not output.has_started:
                raise
            log.exception("%s: a stream failed by our own fault", request.request_id)
            measurement.outcome = BROKEN
            await output.write(error_event(INTERNAL_ERROR, "internal_error"))
        finally:
            self.pings.discard(output)
        await output.close()

    def _preset(self, request: ApiRequest) -> ApiRequest:
        """The request with an alias resolved, and with the model's defaults where the client said nothing."""
        preset = self.table.preset(request.model)
        return request if preset is None else with_preset(request, preset)

    def _ticket(self, request: ApiRequest, key: str) -> Ticket:
        priority = class_of(request.body.get("service_tier"))
        model = request.model
        if self.admission.knows(model):
            request.measurement.model = model
        return self.admission.ticket(model, key=key, priority=priority)

    async def _try_workers(
        self,
        request: ApiRequest,
        attempt: Callable[[Worker], Awaitable[T]],
        stream: ClientStream | None,
    ) -> T:
        """What `attempt` returns for the first worker that does not fail. Raises ApiError."""
        state, measurement = self.retry_budget.first_attempt(request), request.measurement
        if stream is not None and stream.has_answer:  # another process began it
            state.resumed(stream.delivered())
            self._suit(state, stream)
        while True:
            if (booking := self._book(request, state)) is not None:
                with booking as worker:
                    measurement.worker = worker.row.name
                    if measurement.model is None:
                        measurement.model = request.model
                    try:
                        return await attempt(worker)
                    except ContextOverflow as error:
                        context = self.table.smaller_context(worker, request.model)
                        if context is None or (stream and stream.has_answer):
                            raise
                        state.overflowed(error, context)
                        continue
                    except WorkerFailed as error:
                        log.warning("%s: %s %s", request.request_id, worker.row.name, error)
                        measurement.retries += 1
                        # An engine that says by a 500 that it cannot do a grammar is well.
                        own = error.client_error is not None and may_break_engine(request.body)
                        if not (error.our_fault or own):
                            self.table.suspect(worker)
                        delivered = stream.delivered() if stream else 0
                        state.failed(worker.row.name, error, delivered)
                        if stream is not None:
                            self._suit(state, stream)
                            if delivered:  # elsewhere it could be cut short
                                state.preferred_context = worker.context_of(request.model) or 0
                        continue
            await state.wait(in_stream=stream is not None and stream.has_answer)

    def _book(self, request: ApiRequest, state: RetryState) -> Booking | None:
        """The worker to try next; None when every one is excluded. Raises NoWorker at first."""
        try:
            excluded = frozenset(state.excluded)
            return self.router.book(
                request,
                excluded,
                state.least_context,
                state.preferred_context,
                state.forced_ids,
            )
        except NoWorker:
            if not state.has_tried:
                raise
            return None

    def _suit(self, state: RetryState, stream: ClientStream) -> None:
        """Notes what a worker needs that goes on with the stream."""
        state.least_context = max(state.least_context, stream.tokens() + 1)
        state.forced_ids = stream.forced_ids()

    def _relay_for(self, worker: Worker) -> Relay | FastChatRelay:
        """The relay that speaks this worker's protocol."""
        return self.fastchat_relay if worker.extension is None else self.relay
