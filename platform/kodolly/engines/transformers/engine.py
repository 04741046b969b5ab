"""The engine: runs the model on a thread of its own, for requests from the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from kodolly.engines.token_bytes import longest_token_of
from kodolly.engines.transformers import model as models
from kodolly.engines.transformers.logprobs import TokenTexts
from kodolly.engines.transformers.requests.chat import ChatRequest
from kodolly.engines.transformers.requests.sampling import Sampling
from kodolly.engines.transformers.sampling import SamplingParams
from kodolly.engines.transformers.scheduler import Scheduler
from kodolly.engines.transformers.sequence import Delta, Sequence
from kodolly.engines.transformers.structured.compiler import (
    Grammar,
    GrammarCompiler,
    llguidance_tokenizer,
)
from kodolly.engines.transformers.text import Text, generation_defaults
from kodolly.engines.transformers.tokenizing import Tokenizing
from kodolly.errors import BadRequest, ContextOverflow, EngineStartError, NoWorker

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """What a request's texts are made into: a grammar, and token ids that may not follow each other."""

    grammar: Grammar | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()


NO_RULES = Rules()


class Answers:
    """The answers to one request while they are generated; one sequence for each choice."""

    def __init__(self, scheduler: Scheduler, prompts: list[list[int]]) -> None:
        self.prompts = prompts  # token ids, one list for each choice
        self.echoes: list[
            str
        ] = []  # what each choice's text begins with; none at all for most requests
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._deltas: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()
        self.sequences: list[Sequence] = []

    def sink(self, index: int) -> Callable[[Delta], None]:
        """A function that the model's thread calls with the deltas of choice `index`."""

        def put(delta: Delta) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed already
                self._loop.call_soon_threadsafe(self._deltas.put_nowait, (index, delta))

        return put

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """Pairs of choice and delta, until every choice is finished."""
        unfinished = len(self.sequences)
        while unfinished:
            index, delta = await self._deltas.get()
            unfinished -= delta.finish_reason is not None
            yield index, delta

    def abort(self) -> None:
        """Stops all of them: nobody reads them any more."""
        self._scheduler.abort(self.sequences)


class Engine:
    """One model. It takes requests from the end of its loading until `close`."""

    def __init__(
        self,
        options: models.ModelOptions,
        *,
        template: str | None = None,
        seed: int | None = None,
        max_waiting: int = 64,
    ) -> None:
        """`template`: a Jinja template instead of the model's own.

        `seed`: for requests without one. `max_waiting`: choices that may wait for a row.
        """
        self._options = options
        self._template = template
        self._seed = seed
        self._max_waiting = max_waiting
        self._scheduler: Scheduler | None = None
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self.tokenizing = Tokenizing(options.max_num_seqs + max_waiting)
        self.failure: str | None = None
        self.closing = False
        self.created = int(time.time())

    def start(self, on_failure: Callable[[], None]) -> None:
        """Loads in the background. If that fails, the model's thread calls `on_failure`."""
        self._on_failure = on_failure
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether it takes requests."""
        return self._scheduler is not None and not self.closing

    @property
    def scheduler(self) -> Scheduler:
        """The running scheduler. Raises NoWorker while the model is loading."""
        if self._scheduler is None:
            raise NoWorker("the model is still loading", headers={"Retry-After": "5"})
        return self._scheduler

    @property
    def longest(self) -> int:
        """Tokens that prompt and answer may have together. Raises NoWorker while loading."""
        _ = self.scheduler  # raises while the model is loading
        return self._model.longest

    def close(self) -> None:
        """Takes no more requests. The model's thread ends after those that are running or waiting."""
        self.closing = True
        if self._scheduler is not None:
            self._scheduler.close()

    def abort_all(self) -> None:
        """Aborts all answers and waits for the model's thread, at most 10 s."""
        self.close()
        if self._scheduler is not None:
            self._scheduler.abort_all()
            self._thread.join(timeout=10)

    async def encode_chat(
        self,
        messages: list[dict[str, Any]],
        *,
        contexts: int = 1,
        calls: bool = False,
        **options: Any,
    ) -> list[int]:
        """Token ids of a chat. `options`: of `Text.chat`. Raises BadRequest, ContextOverflow, NoWorker.

        `contexts`: of the model that it may fill. `calls`: the answer may call tools.
        """
        limit = self.longest * contexts
        if calls and not self._text.reads_calls:
            raise BadRequest(
                "tools: the model's chat template has no place for them, or calls them in a form that "
                "the transformers engine does not read",
                param="tools",
            )
        with self.tokenizing.place():
            text = await self.tokenizing.run(lambda: self._text.chat(messages, **options))
            return await self.tokenizing.encode(
                self._text, text, special=False, limit=limit, field="messages"
            )

    async def encode(
        self, prompts: list[str | list[int]], *, special: bool, contexts: int = 1
    ) -> list[list[int]]:
        """Token ids of each prompt that is a text. Raises ContextOverflow or NoWorker.

        `special`: with the tokens that the tokenizer adds itself. `contexts`: of the model that a prompt
        may fill.
        """
        limit = self.longest * contexts
        with self.tokenizing.place():
            return [
                prompt
                if isinstance(prompt, list)
                else await self.tokenizing.encode(
                    self._text, prompt, special=special, limit=limit, field="prompt"
                )
                for prompt in prompts
            ]

    async def decode(self, ids: list[int]) -> str:
        """The text of token ids, special ones too. Raises NoWorker."""
        _ = self.scheduler  # raises while the model is loading
        with self.tokenizing.place():
            return await self.tokenizing.run(lambda: self._text.decode(ids, special=True))

    async def decode_plain(self, ids: list[int]) -> str:
        """The text of token ids without special ones. Raises NoWorker."""
        with self.tokenizing.place():
            return await self.tokenizing.run(lambda: self._text.decode(ids))

    async def pieces(self, ids: list[int]) -> list[str]:
        """Tokens as the vocabulary spells them. Raises NoWorker."""
        with self.tokenizing.place():
            return await self.tokenizing.run(lambda: self._text.pieces(ids))

    async def rules(self, sampling: Sampling) -> Rules:
        """What has to be made of a request's texts before it can start: its grammar, its bad words.

        Raises BadRequest, which names the field, or NoWorker.
        """
        _ = self.scheduler  # raises while the model is loading
        words: list[tuple[int, ...]] = []
        if sampling.bad_words:
            with self.tokenizing.place():
                words = await self.tokenizing.run(
                    lambda: [ids for word in sampling.bad_words for ids in self._text.word(word)]
                )
        constraint = sampling.constraint
        if constraint is None:
            return Rules(bad_words=tuple(words))
        if self._compiler is None:
            field = constraint.field.partition(".")[0]
            raise BadRequest(
                f"{field}: needs a tokenizer.json, which this model does not have", param=field
            )
        return Rules(await self._compiler.compile(constraint), tuple(words))

    @property
    def load(self) -> int:
        """Requests that are tokenized, wait or run."""
        return self.tokenizing.requests + self.scheduler.waiting + self.scheduler.running

    def submit(
        self, request_id: str, prompts: list[list[int]], sampling: Sampling, rules: Rules
    ) -> Answers:
        """Starts `sampling.n` answers to each prompt (token ids). `rules`: of `rules`.

        Raises ContextOverflow or BadRequest for an impossible request, NoWorker when too many wait.
        """
        most = self._options.max_num_seqs + self._max_waiting
        if len(prompts) * sampling.n > most:
            field = "n" if sampling.n > 1 else "prompt"
            raise BadRequest(
                f"{field}: asks for {len(prompts) * sampling.n} answers, and this engine holds at "
                f"most {most} at once, running and waiting",
                param=field,
            )
        prompts = [sampling.truncated(prompt, self.longest) for prompt in prompts]
        answers = Answers(self.scheduler, [prompt for prompt in prompts for _ in range(sampling.n)])
        for index, prompt in enumerate(answers.prompts):
            params = sampling.params(
                self._room(prompt, sampling), self._defaults, self._model.vocabulary
            )
            self._check_min_tokens(params)
            changes: dict[str, Any] = {}
            seed = self._seed if params.seed is None else params.seed
            if seed is not None:
                changes["seed"] = seed + index % sampling.n
            if rules.bad_words:
                changes["bad_words"] = rules.bad_words
            if changes:
                params = dataclasses.replace(params, **changes)
            answers.sequences.append(
                Sequence(
                    request_id,
                    prompt,
                    params,
                    self._decoder.decode if sampling.hides_special else self._decode_all,
                    self._ends,
                    answers.sink(index),
                    rules.grammar.matcher() if rules.grammar else None,
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

    def _room(self, prompt: list[int], sampling: Sampling) -> int:
        """Tokens left in the context after the prompt. Raises BadRequest or ContextOverflow."""
        field = "messages" if isinstance(sampling, ChatRequest) else "prompt"
        if not prompt:
            raise BadRequest(f"{field} must not be empty", param=field)
        if max(prompt) >= self._model.vocabulary:
            raise BadRequest(f"{field} holds a token outside the vocabulary", param=field)
        room, limit = self.longest - len(prompt), sampling.limit
        limit = 1 if limit is None else limit
        if room < limit:
            if limit > self.longest:
                chat = isinstance(sampling, ChatRequest) and sampling.max_completion_tokens
                field = "max_completion_tokens" if chat else "max_tokens"
            raise ContextOverflow(
                f"This model's maximum context length is {self.longest} tokens, but the prompt "
                f"has {len(prompt)} and the answer asks for {limit}.",
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

    def _decode_all(self, ids: list[int]) -> str:
        return self._decoder.decode(ids, special=True)

    def _grammar_compiler(self, ends: list[int]) -> GrammarCompiler | None:
        """None for a model without a tokenizer.json."""
        size = max(self._model.vocabulary, len(self._text.tokenizer))
        try:
            tokenizer = llguidance_tokenizer(self._text.tokenizer, size, ends)
        except ValueError as error:
            log.warning("no JSON, grammars or demanded tool calls with this tokenizer: %s", error)
            return None
        return GrammarCompiler(tokenizer, size, most=self._options.max_num_seqs + self._max_waiting)

    def _load(self) -> None:
        directory, started = Path(self._options.directory), time.monotonic()
        self._text = Text(directory, self._template)
        self.tokenizing.longest_token = longest_token_of(directory)
        self._decoder = Text(
            directory
        )  # another one: the model's thread decodes while a request is encoded
        ends, defaults = generation_defaults(directory)
        ends = ends or frozenset(() if self._text.end is None else (self._text.end,))
        self._defaults = {**defaults, **self._options.defaults}
        self._model = models.load(self._options)
        self._compiler = self._grammar_compiler([*ends])
        self.texts = TokenTexts(self._decode_all)
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
