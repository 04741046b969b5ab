"""Continues what a lost worker left unfinished, on another one, in the same stream."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import Any

from kodolly.api.errors import WorkerFailed
from kodolly.api.prepare import stops_of
from kodolly.api.resume import events
from kodolly.api.resume.attempt import ResumeAttempt
from kodolly.api.resume.continuation_request import (
    continuation_request,
    logprobs_count,
    tokens_left,
)
from kodolly.api.resume.journal import Choice
from kodolly.api.resume.text_cut import (
    LONGEST_SPLIT,
    REPLACEMENT,
    TextAfterCut,
    TokenTextMismatch,
    tokens_of_half_a_character,
    unsent_text,
)
from kodolly.errors import EngineFailed
from kodolly.protocol.event_stream import choices_of

Json = dict[str, Any]
# Tokens at an answer's end that are decoded to see whether they end in half a character.
WINDOW = 8


class Continuation(ResumeAttempt):
    """Continues each answer by a plain completion of its prompt and its tokens so far."""

    def check(self) -> None:
        """Raises WorkerFailed for an engine that takes no token ids."""
        worker = self._worker
        if worker.takes_token_ids is False or (worker.extension and worker.extension.chat_only):
            raise WorkerFailed("cannot continue from token ids", did_work=False)

    async def finish(self, choice: Choice) -> None:
        text = await self._text_after_cut(choice)
        context = self._worker.context_of(self._request.model)
        left = tokens_left(self._request, choice, context)
        if self._request.chat and not choice.role_sent:
            await self.send(events.role_event(self._journal, choice))
            choice.role_sent = True
        if left is None:
            raise EngineFailed("the engine tells no context length to continue within")
        if left <= 0:
            return await self._deliver(choice, text.flush(), [], None, ("length", None))
        if text.stop is not None:
            return await self._deliver(choice, text.push(""), [], None, ("stop", text.stop))
        body = continuation_request(self._request, choice, left)
        request = replace(self._request, request_id=self.new_id(choice))
        stream = self._engines.events(request, self._worker, "/v1/completions", body)
        async with aclosing(stream):  # closed at once where a stop string ends it
            async for part in stream:
                await self._pass_on(choice, text, part)
                if choice.is_finished:
                    return None
        raise WorkerFailed("ended its answer too early")

    async def _pass_on(self, choice: Choice, after_cut: TextAfterCut, body: Json) -> None:
        """One event of the continuation."""
        for part in choices_of(body):
            choice.prompt = choice.prompt or part.get("prompt_token_ids")
            ids = part.get("token_ids") or []
            text = after_cut.push(part.get("text") or "")
            finish: tuple[str, Any] | None = None
            if after_cut.stop is not None:
                finish = ("stop", after_cut.stop)
            elif part.get("finish_reason"):
                text += after_cut.flush()
                finish = (part["finish_reason"], part.get("stop_reason"))
            repeats = min(choice.repeats, len(ids))
            logprobs = self._logprobs(part.get("logprobs"), after_cut.base, repeats)
            await self._deliver(choice, text, ids, logprobs, finish, repeats)
            choice.repeats -= repeats

    async def _deliver(
        self,
        choice: Choice,
        text: str,
        ids: list[int],
        logprobs: Json | None,
        finish: tuple[str, Any] | None,
        repeats: int = 0,
    ) -> None:
        """Sends one piece; the client already has the first `repeats` of its token ids."""
        new_ids = ids[repeats:] if self._shows_ids else None
        body = events.text_event(
            self._request, self._journal, choice, text, new_ids, logprobs, finish
        )
        # Sent first, then added to the journal, with nothing between: what fails was not sent.
        await self.send(body)
        choice.ids.extend(ids)
        if text:
            choice.parts.append(text)
        choice.is_finished = finish is not None

    def _logprobs(self, logprobs: Json | None, base: int, repeats: int) -> Json | None:
        if logprobs is None:
            return None
        rest = events.without_first(logprobs, repeats) or {}
        if not self._request.chat:
            return events.shift_offsets(rest, base)
        return events.chat_logprobs(rest, logprobs_count(self._request) or 0)

    async def _text_after_cut(self, choice: Choice) -> TextAfterCut:
        """The text after the cut, which is made between two characters."""
        extension = self._worker.extension
        stops = stops_of(self._request.body, extension) if extension else []
        include = bool(self._request.body.get("include_stop_str_in_output"))
        if not choice.ids:
            return TextAfterCut(choice, "", stops, include=include)
        await self._take_back_half_a_character(choice)
        unsent = ""
        if stops and choice.ids:
            text = await self._detokenize(list(choice.ids))
            try:
                unsent = unsent_text(text, choice.text)
            except TokenTextMismatch as mismatch:
                raise EngineFailed(str(mismatch)) from mismatch
        return TextAfterCut(choice, unsent, stops, include=include)

    async def _take_back_half_a_character(self, choice: Choice) -> None:
        texts: list[str] = []
        for count in range(min(LONGEST_SPLIT, len(choice.ids)) + 1):
            ids = list(choice.ids[: len(choice.ids) - count])
            texts.append(await self._detokenize(ids[-WINDOW:]))
            if not texts[-1].endswith(REPLACEMENT):
                break
        count = tokens_of_half_a_character(texts)
        if count:
            del choice.ids[-count:]
            choice.repeats += count

    async def _detokenize(self, ids: list[int]) -> str:
        return await self._engines.detokenize(self._request, self._worker, ids)
