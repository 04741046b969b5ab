"""The choices of a response: what each of its answers is in OpenAI's form, whole or piece by piece."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kodolly.engines.transformers.engine import Answers
from kodolly.engines.transformers.logprobs import LogprobWriter, Score, TokenTexts, prompt_form
from kodolly.engines.transformers.requests.chat import ChatRequest
from kodolly.engines.transformers.requests.completion import CompletionRequest
from kodolly.engines.transformers.sequence import Delta
from kodolly.engines.transformers.tools.parser import CallParser, joined, merged

Json = dict[str, Any]
# What OpenAI's and vLLM's messages have and this engine never fills: clients read these without asking.
UNUSED = {"refusal": None, "reasoning": None}


@dataclass(frozen=True, slots=True)
class ResponseMeta:
    """The fields of a response that are the same in each of its events."""

    id: str
    model: str
    chat: bool
    token_ids: bool  # the response also has the token ids of prompt and answer
    created: int = field(default_factory=lambda: int(time.time()))

    def envelope(self, choices: list[Json], *, chunk: bool) -> Json:
        """A response or an event (`chunk`) with these choices."""
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def response_meta(
    request_id: str, model: str, body: ChatRequest | CompletionRequest
) -> ResponseMeta:
    """The fixed fields of the response to `body`."""
    chat = isinstance(body, ChatRequest)
    prefix = "chatcmpl-" if chat else "cmpl-"
    return ResponseMeta(prefix + request_id, model, chat, bool(body.return_token_ids))


class Choices:
    """The choices of one response, with what has to be remembered of each from piece to piece."""

    def __init__(
        self,
        answers: Answers,
        meta: ResponseMeta,
        body: ChatRequest | CompletionRequest,
        texts: TokenTexts,
    ) -> None:
        self.answers = answers
        self.meta = meta
        self._body = body
        self._texts = texts
        indices = range(len(answers.prompts))
        self._begun: set[int] = set()
        self._writers: list[LogprobWriter] = []
        if (count := body.alternatives) is not None:
            ids = body.return_tokens_as_token_ids
            self._writers = [
                LogprobWriter(texts, chat=meta.chat, count=count, ids=ids) for _ in indices
            ]
        self._parsers: list[CallParser] = []
        self._named = False
        if isinstance(body, ChatRequest) and (use := body.tool_use) is not None:
            self._parsers = [CallParser(parallel=use.parallel) for _ in indices]
            self._named = use.named

    def first_chunks(self) -> Iterator[tuple[Json, Json]]:
        """The chunks that open each choice of a chat, with what else their event has."""
        for index, prompt in enumerate(self.answers.prompts):
            more = {"prompt_token_ids": prompt} if self.meta.token_ids and index == 0 else {}
            yield self._choice(index, {"delta": {"role": "assistant", "content": ""}}, None), more
        for index, echo in enumerate(self.answers.echoes):
            if echo:
                yield self._choice(index, {"delta": {"content": echo}}, None), {}

    def chunk(self, index: int, delta: Delta) -> Json | None:
        """The choice of an event; None if `delta` has nothing to show."""
        is_first = index not in self._begun
        is_last = delta.finish_reason is not None
        if self._parsers:
            content: Json = {"delta": merged(self._calls(index, delta.text, is_last=is_last))}
        elif self.meta.chat:
            content = {"delta": {"content": delta.text}}
        else:
            content = {"text": self._echo(index) + delta.text if is_first else delta.text}
        shows = content["delta"] if self._parsers else delta.text
        if not (shows or is_last or self.meta.token_ids or delta.score):
            return None
        self._begun.add(index)
        values = [delta.score] if delta.score else []
        logprobs = self._logprobs(index, delta.token_ids, values, is_first=is_first)
        choice = self._choice(index, content, delta, logprobs)
        if self.meta.token_ids:
            choice["token_ids"] = list(delta.token_ids)
            if is_first and not self.meta.chat:
                choice["prompt_token_ids"] = self.answers.prompts[index]
        return choice

    def whole(self, index: int, deltas: list[Delta]) -> Json:
        """The choice of a response from all that came of its answer."""
        text = self._echo(index) + "".join(delta.text for delta in deltas)
        ids = tuple(token for delta in deltas for token in delta.token_ids)
        if self._parsers:
            message = joined(self._calls(index, text, is_last=True))
            content: Json = {"message": {"role": "assistant", **message, **UNUSED}}
        elif self.meta.chat:
            content = {"message": {"role": "assistant", "content": text, **UNUSED}}
        else:
            content = {"text": text}
        values = [delta.score for delta in deltas if delta.score]
        logprobs = self._logprobs(index, ids, values, is_first=True)
        choice = self._choice(index, content, deltas[-1], logprobs)
        choice["token_ids"] = list(ids) if self.meta.token_ids else None
        if not self.meta.chat:
            choice |= self.prompt_fields(index)
        return choice

    def prompt_fields(self, index: int) -> Json:
        """The prompt's token ids and log probabilities; null, as vLLM has it, unless asked for."""
        fields: Json = {"prompt_token_ids": None, "prompt_logprobs": None}
        if self.meta.token_ids:
            fields["prompt_token_ids"] = self.answers.prompts[index]
        if self._body.prompt_logprobs is not None:
            values = self.answers.sequences[index].prompt_scores
            fields["prompt_logprobs"] = prompt_form(
                self._texts, self.answers.prompts[index], values
            )
        return fields

    def _echo(self, index: int) -> str:
        return self.answers.echoes[index] if self.answers.echoes else ""

    def _calls(self, index: int, text: str, *, is_last: bool) -> list[Json]:
        parser = self._parsers[index]
        return parser.push(text) + (parser.flush() if is_last else [])

    def _logprobs(
        self, index: int, tokens: tuple[int, ...], values: list[Score], *, is_first: bool
    ) -> Json | None:
        if not self._writers:
            return None
        scored: list[Score | None] = list(values)
        if is_first and isinstance(self._body, CompletionRequest) and self._body.echo:
            tokens = (*self.answers.prompts[index], *tokens)
            scored = [*self.answers.sequences[index].prompt_scores, *scored]
        return self._writers[index].write(tokens, scored)

    def _choice(
        self, index: int, content: Json, delta: Delta | None, logprobs: Json | None = None
    ) -> Json:
        """One choice. `delta`: its newest part, from which the finish reason is taken."""
        reason = delta.finish_reason if delta is not None else None
        if reason == "stop" and self._parsers and self._parsers[index].calls and not self._named:
            reason = "tool_calls"
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}
        if delta is not None and reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return choice
