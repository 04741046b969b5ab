"""Makes another worker give the same answer again, hides what the client has of it, and goes on.

For what tokens do not carry: a tool parser, a grammar, thoughts. An engine that takes forced ids
begins with the very tokens that were sent. Another one is only asked the same once more, where a seed or
temperature 0 lets it give the same answer; rounding may still make it another one.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from kodolly.api.errors import WorkerFailed
from kodolly.api.prepare import prepared
from kodolly.api.resume import events
from kodolly.api.resume.attempt import ResumeAttempt
from kodolly.api.resume.journal import Choice
from kodolly.api.resume.replay_cut import Diverged, ReplayCut
from kodolly.api.resume.replay_request import is_deterministic, replay_request
from kodolly.errors import EngineFailed
from kodolly.protocol.event_stream import choices_of

Json = dict[str, Any]


class Replay(ResumeAttempt):
    """Replays each unfinished answer as a request of its own."""

    _engine_usage: Json | None = None  # of the last answer to end

    @property
    def _forces(self) -> bool:
        extension = self._worker.extension
        has_ids = all(choice.has_token_ids for choice in self._journal.unfinished)
        return has_ids and extension is not None and extension.forced_ids

    def check(self) -> None:
        """Raises WorkerFailed for an engine that would give another answer."""
        if not self._forces and not is_deterministic(self._request.body):
            raise WorkerFailed("takes no forced token ids", did_work=False)

    def usage(self) -> Json:
        """The engine's own counts of an only answer, which know more than we do."""
        if self._request.choices == 1 and self._engine_usage is not None:
            return self._engine_usage
        return super().usage()

    async def finish(self, choice: Choice) -> None:
        """Replays one answer and sends what is new. Raises WorkerFailed or ApiError."""
        extension = self._worker.extension
        if extension is None:
            raise WorkerFailed("has no engine URL", did_work=False)
        # Many an engine refuses a field that it does not know.
        ids = self._forces or (choice.has_token_ids and bool(self._worker.takes_token_ids))
        request = replay_request(self._request, choice, self.new_id(choice), force=self._forces)
        body = await prepared(request.body, extension, chat=request.chat, token_ids=ids)
        cut = ReplayCut(choice, chat=self._request.chat)
        stream = self._engines.events(request, self._worker, request.path, body)
        try:
            async with aclosing(stream):
                async for event in stream:
                    await self._pass_on(choice, cut, event)
        except Diverged as error:
            raise EngineFailed(
                "The worker was lost in the middle of its answer, and the same request gave another"
                f" answer on the next worker: {error}.",
                code="replay_diverged",
            ) from error
        except WorkerFailed as error:
            # One that says itself what is wrong is well; one that breaks off here was killed.
            if cut.is_on_the_way and error.client_error is None:
                error.engine_crashed = False
            raise
        if not choice.is_finished:
            raise WorkerFailed("ended its answer too early")

    async def _pass_on(self, choice: Choice, cut: ReplayCut, body: Json) -> None:
        """One event of the replay."""
        if not choices_of(body):
            self._engine_usage = body.get("usage") or self._engine_usage
        choice.prompt = choice.prompt or body.get("prompt_token_ids")
        for part in choices_of(body):
            choice.prompt = choice.prompt or part.get("prompt_token_ids")
            rest = cut.rest(part)
            if not rest.is_hidden or (self._shows_ids and rest.ids):
                if "token_ids" in rest.part:
                    rest.part["token_ids"] = rest.ids if self._shows_ids else None
                usage = self._usage_so_far(body)
                # Sent first, then added to the journal: what fails was not sent.
                await self.send(events.replayed_event(self._journal, rest.part, usage))
            cut.take(rest)

    def _usage_so_far(self, body: Json) -> Json | None:
        if not body.get("usage") or self._request.choices == 1:
            return body.get("usage")
        return events.usage(self._request, self._journal)
