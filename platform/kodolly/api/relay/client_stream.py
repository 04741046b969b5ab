"""One client's stream: what it was sent, and how another worker can go on with it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from typing import Any

from kodolly.api.client_output import Output
from kodolly.api.request import ApiRequest
from kodolly.api.resume.continuation_request import can_continue, is_resumable
from kodolly.api.resume.journal import Journal
from kodolly.api.resume.replay_request import is_deterministic, is_replayable
from kodolly.api.routing.router import ForcedIds
from kodolly.api.routing.table import Worker
from kodolly.api.sse import event


class WayOn(Enum):
    """How a worker goes on with a stream."""

    CONTINUE = auto()  # from its tokens, as a prompt
    FORCE = auto()  # the request again, on an engine that is given the tokens sent
    FORCE_IF_POSSIBLE = auto()  # the same; any other engine may give the same answer by itself
    REPEAT = auto()  # the request again, which may give the same answer


class ClientStream:
    """One client's stream: what it was sent, and how another worker can go on with it.

    A journal is kept of what can be continued or replayed. `has_answer`: a part of an answer was sent.
    `shows_ids`: `output` gets the token ids of every event, as a client does that asked for them.
    """

    def __init__(self, request: ApiRequest, output: Output, *, shows_ids: bool = False) -> None:
        self.output = output
        self.journal = Journal(request)
        self.is_resumable = self.is_recorded = is_resumable(request.body)
        self.shows_ids = shows_ids or request.wants_token_ids
        self.has_answer = False
        self._body = request.body
        self._worker: Worker | None = None  # that has begun the answer

    @classmethod
    def restored(
        cls,
        request: ApiRequest,
        output: Output,
        sent: Iterable[dict[str, Any]],
        *,
        shows_ids: bool = False,
    ) -> ClientStream:
        """A stream that another process began: `Relay.stream` goes on with it, in the same events.

        `request`: the one it was begun with, its `request_id` too. `sent`: the events that were
        sent, as objects of chat.completion.chunk or text_completion, in order; several may be joined into
        one. Each has `id`, `object`, `created`, `model` and `choices`; what goes on takes those of the first.
        A choice has `index`, `delta` (or `text`), `finish_reason`, and the `token_ids` of this
        event, also where its delta is empty. The ids of the prompt stand in `prompt_token_ids` of a
        chat's first event, or of a completion's first choice: where tokens alone are continued they are
        needed. If it had sent nothing, `sent` is empty and the request begins anew.
        """
        stream = cls(request, output, shows_ids=shows_ids)
        stream.is_recorded = True
        for body in sent:
            stream.journal.add(event(body))
            stream.has_answer = True
        stream.journal.fold()
        return stream

    def record(self, worker: Worker) -> None:
        """Decides, before `worker` begins the answer, whether a journal of it is any use."""
        self._worker = worker
        if not self.is_resumable:
            self.is_recorded = self._is_replayable

    @property
    def _may_be_forced(self) -> bool:
        """Whether workers of this model take forced ids: as this one, so the others, most likely."""
        extension = self._worker.extension if self._worker else None
        return extension.forced_ids if extension else self._worker is None

    @property
    def _is_replayable(self) -> bool:
        may_match = self._may_be_forced or is_deterministic(self._body)
        return may_match and is_replayable(self._body)

    def way_on(self) -> WayOn | None:
        """How another worker could go on with what the client has; None if none can."""
        if self.is_resumable and can_continue(self.journal):
            return WayOn.CONTINUE
        if not self._is_replayable:
            return None
        forcible = self._may_be_forced and all(c.has_token_ids for c in self.journal.unfinished)
        if is_deterministic(self._body):
            return WayOn.FORCE_IF_POSSIBLE if forcible else WayOn.REPEAT
        return WayOn.FORCE if forcible else None

    def delivered(self) -> int | None:
        """After a failure: the tokens that the client has, a finished answer counted as one more.

        None if the client has something that no other worker can continue.
        """
        self.journal.fold()
        is_known = self.is_recorded and self.journal.is_readable
        if not is_known and self.has_answer:
            return None
        if self.journal.empty:
            return 0
        if self.way_on() is None:
            return None
        choices = self.journal.choices.values()
        # Of an engine that sends no ids, characters stand for them.
        return sum((len(c.ids) or len(c.text)) + c.is_finished for c in choices)

    def forced_ids(self) -> ForcedIds | None:
        """Whether the next worker has to take forced ids."""
        if self.journal.empty:
            return None
        needs = {WayOn.FORCE: ForcedIds.REQUIRED, WayOn.FORCE_IF_POSSIBLE: ForcedIds.PREFERRED}
        way_on = self.way_on()
        return needs.get(way_on) if way_on else None

    def tokens(self) -> int:
        """Tokens of the longest prompt and the answer to it that the client has, as far as known."""
        choices = self.journal.choices.values()
        return max((len(c.prompt or ()) + len(c.ids) for c in choices), default=0)
