"""Text becomes tokens on a thread of its own, a piece at a time, within bounds of time and number.

A tokenizer needs seconds for megabytes of text. So a text that cannot fit the context is refused
before it is encoded whole: at once by its bytes, if the tokenizer's longest token is known, else once its
first pieces have more tokens than fit. Between two pieces other requests have their turn.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from kodolly.errors import ContextOverflow, NoWorker

T = TypeVar("T")

PIECE = 2**16  # characters that are encoded at a time while it is not clear whether a text fits
# A text cut into pieces has about as many tokens as the whole one. It is refused beyond so many times the
# tokens that fit: no way of cutting doubles them.
SLACK = 2


class Encoder(Protocol):
    """What is needed of a tokenizer; see `text.Text`."""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text."""


class Tokenizing:
    """The thread, and the requests whose text it encodes or that wait for it.

    A request that is cancelled, since its client has gone, ends before its next piece.
    """

    def __init__(self, most: int) -> None:
        """`most`: requests at once, that of the thread and those that wait."""
        self.requests = 0
        self.longest_token: int | None = None  # bytes of text; None: no bound, or not known yet
        self._most = most
        # Only one thread encodes: a tokenizer is not thread-safe.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tokenize")

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request. Raises NoWorker when too many have one."""
        if self.requests >= self._most:
            raise NoWorker(
                f"the engine is full: it tokenizes {self.requests} requests already",
                headers={"Retry-After": "1"},
            )
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, on the thread. It does not begin once the request is cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def encode(
        self, encoder: Encoder, text: str, *, special: bool, limit: int, field: str
    ) -> list[int]:
        """Token ids of `text`. `special`: with the tokens that the tokenizer adds itself.

        Raises ContextOverflow, which names `field`, for a text that cannot have `limit` tokens or
        less. One that has only a few more may be returned.
        """
        if len(text) > limit and self.longest_token is not None:
            size = len(text.encode("utf-8", "surrogatepass"))
            if size > limit * self.longest_token:
                raise _overflow(limit, size // self.longest_token, field)
        if len(text) > PIECE:
            await self._refuse_if_too_long(encoder, text, limit, field)
        return await self.run(lambda: encoder.encode(text, special=special))

    async def _refuse_if_too_long(
        self, encoder: Encoder, text: str, limit: int, field: str
    ) -> None:
        count = 0
        for start in range(0, len(text), PIECE):
            piece = text[start : start + PIECE]
            count += len(await self.run(partial(encoder.encode, piece, special=False)))
            if count > SLACK * limit:
                raise _overflow(limit, count // SLACK, field)


def _overflow(limit: int, count: int, field: str) -> ContextOverflow:
    return ContextOverflow(
        f"This model's maximum context length is {limit} tokens, but the text has at least {count}.",
        param=field,
    )
