"""How far the rows are prepared: a bar where a person watches, a line where nobody does."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

EVERY = 10.0  # seconds between lines where standard error is no terminal


class Preparing:
    """Called with rows done and rows there are, about that."""

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._bar: Any = None
        self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def __call__(self, done: int, total: int) -> None:
        if not self._show:
            return
        if sys.stderr.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=total, desc="preparing rows", unit="row", leave=False)
            self._bar.total = total
            self._bar.update(done - self._bar.n)
        elif time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            sys.stderr.write(f"kodolly train: {done:,} of {total:,} rows prepared\n")
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
