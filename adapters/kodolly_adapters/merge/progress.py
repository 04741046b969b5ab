"""How far a merge is: a bar with MB/s and time left where a person watches, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

EVERY = 10.0  # seconds between lines where standard error is no terminal


class Progress:
    """Counts bytes written of `total`; shows them unless `show` is off. `name` is the command's."""

    def __init__(self, name: str, total: int, *, show: bool = True) -> None:
        self._name = name
        self._total = total
        self._show = show
        self._bar: Any = None
        self._done = 0
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Self:
        if self._show and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit="B", unit_scale=True, desc=self._name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """A line for what takes a while and has no bytes to count."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._show:
            sys.stderr.write(f"kodolly {self._name}: {text}\n")
            sys.stderr.flush()

    def __call__(self, size: int) -> None:
        """`size` more bytes are done."""
        self._done += size
        if self._bar is not None:
            self._bar.update(size)
        elif self._show and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            rate = self._done / (self._said - self._started)
            left = (self._total - self._done) / rate if rate else 0.0
            sys.stderr.write(
                f"kodolly {self._name}: {self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB "
                f"({rate / 1e6:,.0f} MB/s, {left:,.0f} s left)\n"
            )
            sys.stderr.flush()
