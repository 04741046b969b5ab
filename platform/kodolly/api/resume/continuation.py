"""Continues what a lost worker left unfinished, on another one, in the same stream."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import orjson

from kodolly.api.engine_io.calls import EngineDoor, broke_off
from kodolly.api.prepare import stops_of
from kodolly.api.request import Call, WorkerGone
from kodolly.api.resume import events
from kodolly.api.resume.continuation_request import asked_logprobs, continuation, tokens_left
from kodolly.api.resume.journal import Choice, Journal
from kodolly.api.resume.text_cut import (
    LONGEST_SPLIT,
    REPLACEMENT,
    Misfit,
    Tail,
    held_back,
    whole_tokens,
)
from kodolly.api.routing.table import Worker
from kodolly.api.sse import LAST, Output, event
from kodolly.errors import ApiError, EngineFailed, NoWorker
from kodolly.http import server

Json = dict[str, Any]
# Tokens at an answer's end that are decoded to see whether they end in half a character.
WINDOW = 8


class GoingOn:
    """One attempt to finish a stream on `worker`. What it sends is noted in the journal."""

    def __init__(
        self, call: Call, worker: Worker, journal: Journal, door: EngineDoor, output: Output
    ) -> None:
        self._call = call
        self._worker = worker
        self._journal = journal
        self._door = door
        self._output = output

    async def run(self) -> None:
        """Sends the rest of every answer, the usage if wanted, and the end.

        Raises WorkerGone when this worker fails too, ApiError when nobody can go on.
        """
        await self._finish_all()
        if self._call.wants_usage and not self._journal.usage_sent:
            await self._send(events.usage_event(self._call, self._journal))
            self._journal.usage_sent = True
        await self._output.write(LAST)

    async def _finish_all(self) -> None:
        # Not a TaskGroup: it cancels the task it fails in, which then cannot tell its own client's
        # leaving from that any more.
        tasks = [asyncio.create_task(self._finish(choice)) for choice in self._journal.unfinished]
        if not tasks:
            return
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            failures = [task.exception() for task in tasks if task.done()]
        finally:
            await server.cancel_and_wait(*tasks)
        if several := [failure for failure in failures if failure is not None]:
            raise _first(several)

    async def _finish(self, choice: Choice) -> None:
        tail = await self._tail(choice)
        extension = self._worker.extension
        left = tokens_left(self._call, choice, extension.context_length if extension else None)
        if self._call.chat and not choice.opened:
            await self._send(events.role(self._journal, choice))
            choice.opened = True
        if left is None:
            raise EngineFailed("the engine tells no context length to continue within")
        if left <= 0:
            return await self._tell(choice, tail.flush(), [], None, ("length", None))
        if tail.stopped is not None:
            return await self._tell(choice, tail.push(""), [], None, ("stop", tail.stopped))
        body = continuation(self._call, choice, left)
        # An engine keeps a request's name for a while after its connection has broken.
        named = replace(self._call, request_id=self._name(choice))
        rest = self._door.events(named, self._worker, "/v1/completions", body)
        async with aclosing(rest):  # closed at once where a stop string ends it
            async for told in rest:
                await self._pass_on(choice, tail, told)
                if choice.finished:
                    return None
        raise WorkerGone("ended its answer too early")

    def _name(self, choice: Choice) -> str:
        return f"{self._call.request_id}-{choice.index}-{len(choice.ids)}"

    async def _pass_on(self, choice: Choice, tail: Tail, told: Json) -> None:
        """One event of the continuation."""
        if told.get("error"):
            raise broke_off(orjson.dumps(told))
        for given in told.get("choices") or ():
            if given.get("finish_reason") == "abort":
                raise WorkerGone("aborted its answer")
            choice.prompt = choice.prompt or given.get("prompt_token_ids")
            ids = given.get("token_ids") or []
            text = tail.push(given.get("text") or "")
            finish = None
            if tail.stopped is not None:
                finish = ("stop", tail.stopped)
            elif given.get("finish_reason"):
                text += tail.flush()
                finish = (given["finish_reason"], given.get("stop_reason"))
            twice = min(choice.again, len(ids))
            logprobs = self._logprobs(given.get("logprobs"), tail.base, twice)
            await self._tell(choice, text, ids, logprobs, finish, twice)
            choice.again -= twice

    async def _tell(
        self,
        choice: Choice,
        text: str,
        ids: list[int],
        logprobs: Json | None,
        finish: tuple[str, Any] | None,
        twice: int = 0,
    ) -> None:
        shown = ids[twice:] if self._call.wants_token_ids else None
        told = events.piece(self._call, self._journal, choice, text, shown, logprobs, finish)
        # First sent, then noted, with nothing between: what is cut off before was not sent.
        await self._send(told)
        choice.ids.extend(ids)
        if text:
            choice.parts.append(text)
        choice.finished = finish is not None

    def _logprobs(self, told: Json | None, base: int, again: int) -> Json | None:
        if told is None:
            return None
        told = events.without_first(told, again) or {}
        if not self._call.chat:
            return events.shifted(told, base)
        return events.chat_logprobs(told, asked_logprobs(self._call) or 0)

    async def _tail(self, choice: Choice) -> Tail:
        """The text after the cut, which is made at a character."""
        extension = self._worker.extension
        stops = stops_of(self._call.body, extension) if extension else []
        include = bool(self._call.body.get("include_stop_str_in_output"))
        if not choice.ids:
            return Tail(choice, "", stops, include=include)
        await self._take_back_half_a_character(choice)
        held = ""
        if stops and choice.ids:
            decoded = await self._decoded(choice, 0)
            try:
                held = held_back(decoded, choice.text)
            except Misfit as misfit:
                raise EngineFailed(str(misfit)) from misfit
        return Tail(choice, held, stops, include=include)

    async def _take_back_half_a_character(self, choice: Choice) -> None:
        texts: list[str] = []
        for left_off in range(min(LONGEST_SPLIT, len(choice.ids)) + 1):
            texts.append(await self._decoded(choice, left_off, window=WINDOW))
            if not texts[-1].endswith(REPLACEMENT):
                break
        left_off = whole_tokens(texts)
        if left_off:
            del choice.ids[-left_off:]
            choice.again += left_off

    async def _decoded(self, choice: Choice, left_off: int, window: int | None = None) -> str:
        """Text of an answer's tokens, or of its last `window` ones."""
        ids = list(choice.ids[: len(choice.ids) - left_off])
        if window is not None:
            return await self._door.decoded(self._call, self._worker, ids[-window:])
        return await self._door.decoded(self._call, self._worker, ids)

    async def _send(self, body: Json) -> None:
        await self._output.write(event(body))


def _first(several: list[BaseException]) -> BaseException:
    """What one engine does to several answers at once is one failure.

    A fault of ours goes before all; too much to do is another worker's chance.
    """
    faults = [each for each in several if not isinstance(each, WorkerGone | ApiError)]
    failure = (faults or several)[0]
    if isinstance(failure, NoWorker):
        return WorkerGone(failure.message, failure, worked=False)
    return failure
