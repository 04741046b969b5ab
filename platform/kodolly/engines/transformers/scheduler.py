"""Which rows run next: one token of every running answer, and a part of a prompt."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any, Protocol

from kodolly.engines.transformers.sequence import Sequence
from kodolly.errors import NoWorker

log = logging.getLogger(__name__)

CHUNK = 128  # prompt tokens that run between two tokens of the other answers


class Runner(Protocol):
    """What the scheduler needs from a model; see `model.Model`."""

    cache: Any

    def prefill(self, row: int, start: int, ids: list[int], *, every: bool = False) -> Any:
        """Logits (V,) after `ids`, run in `row` from position `start`; `every`: (N, V), after each."""

    def decode(self, tokens: list[int], positions: list[int]) -> Any:
        """Logits (B, V) after one token for each of the first rows."""


class Scheduler:
    """Generates up to `slots` answers at once; the others wait in order of arrival.

    Rows 0..decoding-1 are generating: each step gives all of them one token, in one forward pass.
    The prompts of the rows after them are not in the cache yet: each step runs at most CHUNK of their
    tokens, from the prompt that has waited longest. So a long prompt or answer blocks nobody.
    """

    def __init__(self, model: Runner, slots: int, max_waiting: int) -> None:
        self._model = model
        self._slots = slots
        self._max_waiting = max_waiting
        self._rows: list[Sequence] = []
        self._decoding = 0
        self._step = 0
        self._waiting: deque[Sequence] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self.aborted_total = 0
        self.tokens_total = 0
        self.prompt_tokens_total = 0

    @property
    def running(self) -> int:
        """Requests that hold a row."""
        return sum(not sequence.aborted for sequence in tuple(self._rows))

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    def submit(self, sequences: list[Sequence]) -> None:
        """Queues the sequences of one request. Raises NoWorker when too many wait already."""
        with self._wake:
            if self._closed:
                raise NoWorker("the engine is shutting down", headers={"Retry-After": "5"})
            free = self._slots - len(self._rows)
            if len(self._waiting) + len(sequences) > self._max_waiting + free:
                raise NoWorker(
                    f"the engine is full: {len(self._waiting)} requests wait already",
                    headers={"Retry-After": "1"},
                )
            self._waiting.extend(sequences)
            self._wake.notify()

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Stops these answers. Their rows are free before the next step."""
        with self._wake:
            for sequence in sequences:
                sequence.aborted = True
            self._wake.notify()

    def abort_all(self) -> None:
        """Aborts every answer, running or waiting."""
        self.abort([*self._rows, *self._waiting])

    def close(self) -> None:
        """Refuses new requests; `run` returns once all others are finished or aborted."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def run(self) -> None:
        """Generates tokens until closed. For the model's own thread."""
        while self._await_work():
            try:
                self.step()
            except Exception:  # one failed forward pass must not end the engine
                log.exception("a step of the model failed; all its requests end with an error")
                self._fail_all()

    def step(self) -> None:
        """Removes aborted answers, admits waiting ones, runs a part of a prompt and one token each."""
        self._step += 1
        self._sweep()
        self._read_prompt()
        self._make_tokens()
        if not self._rows:
            self._model.cache.release()

    def _await_work(self) -> bool:
        with self._wake:
            while not self._rows and not self._waiting:
                if self._closed:
                    return False
                self._wake.wait()
        return True

    def _sweep(self) -> None:
        with self._wake:
            for row in reversed(range(len(self._rows))):
                if self._rows[row].aborted:
                    self._note_abort(self._rows[row])
                    self._remove(row)
            for sequence in [each for each in self._waiting if each.aborted]:
                self._waiting.remove(sequence)
                self._note_abort(sequence)
            while self._waiting and len(self._rows) < self._slots:
                self._rows.append(self._waiting.popleft())

    def _note_abort(self, sequence: Sequence) -> None:
        self.aborted_total += 1
        log.info("aborted request %s after %d tokens", sequence.request_id, len(sequence.output))
        sequence.end("abort")

    def _read_prompt(self) -> None:
        budget = CHUNK
        while budget > 0 and self._decoding < len(self._rows):
            reading = range(self._decoding, len(self._rows))
            row = min(reading, key=lambda each: self._rows[each].last_prefill)
            sequence = self._rows[row]
            sequence.last_prefill = self._step
            start = sequence.prefill_end
            ids = sequence.prompt[start : start + budget]
            budget -= len(ids)
            scored = sequence.params.prompt_logprobs is not None
            try:
                logits = self._model.prefill(row, start, ids, every=scored)
                if scored:
                    sequence.score_prompt(logits, start)
                    logits = logits[-1]
            except Exception:  # noqa: BLE001 - _fail logs it; only this row was run
                self._fail(row, "error")
                continue
            sequence.prefill_end += len(ids)
            self.prompt_tokens_total += len(ids)
            if sequence.prefill_end == len(sequence.prompt):
                self._promote(row, logits)

    def _promote(self, row: int, logits: Any) -> None:
        """The row's prompt is in the cache: moves it to the generating rows, with its first token."""
        sequence, first = self._rows[row], self._decoding
        if sequence.params.max_tokens == 0:  # only its prompt was wanted
            sequence.end("length")
            self._remove(row)
            return
        if row != first:
            other = self._rows[first]
            self._model.cache.swap(row, first, max(sequence.in_cache, other.in_cache))
            self._rows[first], self._rows[row] = sequence, other
        self._decoding += 1
        self._advance(first, logits)

    def _make_tokens(self) -> None:
        rows = self._rows[: self._decoding]
        if not rows:
            return
        logits = self._model.decode(
            [each.output[-1] for each in rows], [each.length for each in rows]
        )
        for row in reversed(range(len(rows))):  # a finished row is filled with a later one
            self._advance(row, logits[row])

    def _advance(self, row: int, logits: Any) -> None:
        """Chooses one row's next token. Only the request's own values can make this fail."""
        sequence = self._rows[row]
        try:
            finished = sequence.accept(sequence.choose(logits))
        except Exception:  # noqa: BLE001 - _fail logs it
            self._fail(row, "fault")
            return
        self.tokens_total += 1
        if finished:
            self._remove(row)

    def _fail(self, row: int, reason: str) -> None:
        """Ends one row's answer and logs the exception that is being handled."""
        log.exception("request %s failed; the others go on", self._rows[row].request_id)
        self._rows[row].end(reason)
        self._remove(row)

    def _remove(self, row: int) -> None:
        """Frees a row. The last generating row moves there, and the last row of all into its place."""
        if row < self._decoding:
            self._decoding -= 1
            self._move(self._decoding, row)
            row = self._decoding
        self._move(len(self._rows) - 1, row)
        self._rows.pop()

    def _move(self, source: int, target: int) -> None:
        if source != target:
            self._model.cache.copy(source, target, self._rows[source].in_cache)
            self._rows[target] = self._rows[source]

    def _fail_all(self) -> None:
        for sequence in self._rows:
            sequence.end("error")
        self._rows.clear()
        self._decoding = 0
        self._model.cache.release()
