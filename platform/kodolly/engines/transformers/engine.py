"""The engine: loads on its own thread, takes requests from the event loop, hands back answers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from kodolly.engines.transformers import model as models
from kodolly.engines.transformers.sampling import SamplingParams
from kodolly.engines.transformers.scheduler import Scheduler
from kodolly.engines.transformers.schema import ChatRequest, Sampling
from kodolly.engines.transformers.sequence import Delta, Sequence
from kodolly.engines.transformers.text import Text, generation_defaults
from kodolly.errors import BadRequest, ContextOverflow, EngineStartError, NoWorker

log = logging.getLogger(__name__)
T = TypeVar("T")


class Answers:
    """The answers to one request, as they grow: one sequence a choice."""

    def __init__(self, scheduler: Scheduler, prompts: list[list[int]]) -> None:
        self.prompts = prompts  # token ids, one list a choice
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._deltas: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()
        self.sequences: list[Sequence] = []

    def sink(self, index: int) -> Callable[[Delta], None]:
        """Where the model's thread puts the deltas of choice `index`."""

        def put(delta: Delta) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self._deltas.put_nowait, (index, delta))

        return put

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """(choice, delta) until every choice is finished."""
        left = len(self.sequences)
        while left:
            index, delta = await self._deltas.get()
            left -= delta.finish_reason is not None
            yield index, delta

    def abort(self) -> None:
        """Stop making them, because nobody reads them any more."""
        self._scheduler.abort(self.sequences)


class Engine:
    """One model: not ready until it is loaded, then ready until closed."""

    def __init__(
        self,
        options: models.ModelOptions,
        *,
        template: str | None = None,
        seed: int | None = None,
        max_waiting: int = 64,
    ) -> None:
        """`template`: Jinja text; `seed`: for requests that bring none; `max_waiting`: choices."""
        self._options = options
        self._template = template
        self._seed = seed
        self._max_waiting = max_waiting
        self._scheduler: Scheduler | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        # One thread for all encoding: a tokenizer does not bear two.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="tokenize")
        self.failure: str | None = None
        self.closing = False
        self.created = int(time.time())

    def start(self, on_failure: Callable[[], None]) -> None:
        """Load in the background; `on_failure` is called on the model's thread if that fails."""
        self._on_failure = on_failure
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self._scheduler is not None and not self.closing

    @property
    def scheduler(self) -> Scheduler:
        """The running scheduler. Raises NoWorker while there is none."""
        if self._scheduler is None:
            raise NoWorker("the model is still loading", headers={"Retry-After": "5"})
        return self._scheduler

    @property
    def longest(self) -> int:
        """Tokens that prompt and answer may have together."""
        _ = self.scheduler  # not before it is known
        return self._model.longest

    def close(self) -> None:
        """Take no more requests and let the model's thread end after those it has."""
        self.closing = True
        if self._scheduler is not None:
            self._scheduler.close()

    def abort_all(self) -> None:
        """Abort what is running and wait for the model's thread, at most some seconds."""
        self.close()
        if self._scheduler is not None:
            self._scheduler.abort_all()
            self._thread.join(timeout=10)

    async def text(self, work: Callable[[Text], T]) -> T:
        """Run `work` with the tokenizer, off the event loop."""
        _ = self.scheduler  # not before all is loaded
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoder, work, self._text)

    def submit(self, request_id: str, prompts: list[list[int]], asked: Sampling) -> Answers:
        """Start `asked.n` answers to each prompt (token ids).

        Raises ContextOverflow or BadRequest for what can not be made, NoWorker when full.
        """
        answers = Answers(self.scheduler, [prompt for prompt in prompts for _ in range(asked.n)])
        for index, prompt in enumerate(answers.prompts):
            params = asked.params(self._room(prompt, asked), self._defaults, self._model.vocabulary)
            self._check_min_tokens(params)
            seed = self._seed if params.seed is None else params.seed
            if seed is not None:
                params = dataclasses.replace(params, seed=seed + index % asked.n)
            answers.sequences.append(
                Sequence(
                    request_id,
                    prompt,
                    params,
                    self._decoder.decode,
                    self._ends,
                    answers.sink(index),
                )
            )
        self.scheduler.submit(answers.sequences)
        return answers

    def _check_min_tokens(self, params: SamplingParams) -> None:
        ends = params.stop_token_ids | (frozenset() if params.ignore_eos else self._ends)
        if params.min_tokens and len(ends) >= self._model.vocabulary:
            raise BadRequest(
                "min_tokens cannot be kept: every token of the vocabulary ends the answer",
                param="stop_token_ids",
            )

    def _room(self, prompt: list[int], asked: Sampling) -> int:
        """Tokens left for the answer; raises unless the prompt can be run and some are left."""
        field = "messages" if isinstance(asked, ChatRequest) else "prompt"
        if not prompt:
            raise BadRequest(f"{field} must not be empty", param=field)
        if max(prompt) >= self._model.vocabulary:
            raise BadRequest(f"{field} holds a token outside the vocabulary", param=field)
        room, wanted = self.longest - len(prompt), asked.limit or 1
        if room < wanted:
            raise ContextOverflow(
                f"This model's maximum context length is {self.longest} tokens, but the prompt "
                f"has {len(prompt)} and the answer asks for {wanted}.",
                param=field,
            )
        return room

    def _run(self) -> None:
        try:
            self._load()
        except EngineStartError as error:
            self.failure = str(error)
        except Exception as error:
            log.exception("loading the model failed")
            self.failure = f"loading the model failed: {error!r}"
        if self.failure is not None:
            self._on_failure()
            return
        self.scheduler.run()

    def _load(self) -> None:
        directory, started = Path(self._options.directory), time.monotonic()
        self._text = Text(directory, self._template)
        self._decoder = Text(directory)  # the model's thread decodes while another encodes
        ends, drawing = generation_defaults(directory)
        ends = ends or frozenset(() if self._text.end is None else (self._text.end,))
        self._defaults = {**drawing, **self._options.defaults}
        self._model = models.load(self._options)
        self._ends = frozenset(token for token in ends if 0 <= token < self._model.vocabulary)
        slots = self._options.max_num_seqs
        self._scheduler = Scheduler(self._model, slots, self._max_waiting)
        log.info(
            "ready: %s, %d rows of at most %d tokens, loaded in %.1f s",
            directory.name,
            slots,
            self._model.longest,
            time.monotonic() - started,
        )
