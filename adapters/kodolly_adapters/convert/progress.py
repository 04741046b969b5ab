"""How far a conversion is: a bar where a person watches, a line now and then where nobody does."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from .output.summary import Summary
from .part import Done
from .reading.inputs import members

EVERY = 10.0  # seconds between lines where standard error is no terminal


class Progress:
    """Counts bytes read and rows made; shows them unless `show` is off."""

    def __init__(self, arguments: Sequence[str], *, show: bool = True) -> None:
        self._show = show
        self._bar: Any = None
        self._arguments = arguments
        self._started = self._said = time.monotonic()
        self._read = self._rows = 0

    def __enter__(self) -> Self:
        if self._show and sys.stderr.isatty():
            from tqdm import tqdm

            sizes = [member.size for member in members(self._arguments)]
            total = None if None in sizes else sum(filter(None, sizes))
            self._bar = tqdm(total=total, unit="B", unit_scale=True, desc="converting")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def read(self, size: int) -> None:
        """`size` more bytes were read."""
        self._read += size
        if self._bar is not None:
            self._bar.update(size)

    def part(self, done: Done) -> None:
        """One more shard is finished."""
        self._rows += done.counts.rows
        seconds = time.monotonic() - self._started
        rate = self._rows / seconds if seconds else 0.0
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._rows:,} rows, {rate:,.0f} rows/s", refresh=False)
        elif self._show and time.monotonic() - self._said >= EVERY:
            self._said = time.monotonic()
            self._say(
                f"{self._read / 1e6:,.0f} MB read ({self._read / 1e6 / seconds:,.0f} MB/s), "
                f"{self._rows:,} rows ({rate:,.0f} rows/s)"
            )

    def stage(self, name: str) -> None:
        """What comes after the reading."""
        if self._bar is not None:
            self._bar.set_description(name)
            self._bar.refresh()

    def finished(self, summary: Summary) -> None:
        """The last line: what there is now."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        seconds = time.monotonic() - self._started
        rows = sum(split.rows for split in summary.splits)
        if self._show:
            self._say(
                f"{rows:,} rows, {summary.rejected:,} rejected, in {seconds:,.1f} s "
                f"({rows / seconds:,.0f} rows/s, {self._read / 1e6 / seconds:,.0f} MB/s)"
            )

    def _say(self, text: str) -> None:
        sys.stderr.write(f"kodolly convert: {text}\n")
        sys.stderr.flush()
