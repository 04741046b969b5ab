"""Shows a command's progress: a bar on a terminal, else a line every LINE_INTERVAL seconds."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

LINE_INTERVAL = 10.0  # seconds between lines where standard error is not a terminal


class Progress:
    """Counts the units of work that `kodolly COMMAND` has done, of `total` (None: unknown).

    It prints only if `show` is true. Unit "B" is bytes, shown as MB. `total` may be changed during the work.
    """

    def __init__(
        self, command: str, total: int | None = None, *, unit: str = "B", show: bool = True
    ) -> None:
        self._command, self._unit, self.show = command, unit, show
        self._bar: Any = None
        self._note = ""
        self.restart(total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def restart(self, total: int | None) -> None:
        """Start counting at 0 again, up to `total`."""
        self.total, self.done = total, 0
        self._start_time = self._last_line = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start_time

    def add(self, count: int) -> None:
        """Count `count` more units as done."""
        self.done += count
        if not self.show:
            return
        if sys.stderr.isatty():
            self._draw(count)
        elif time.monotonic() - self._last_line >= LINE_INTERVAL:
            self._last_line = time.monotonic()
            self.say(self._line())

    def reach(self, done: int, total: int) -> None:
        """`done` of `total` units are done by now; the bar goes with the last one."""
        self.total = total
        self.add(done - self.done)
        if done >= total:
            self.close()

    def note(self, text: str) -> None:
        """Set a text that the bar and the lines also show, e.g. "1,024 rows"."""
        self._note = text

    def say(self, text: str) -> None:
        """Remove the bar, then print `text` on a line of its own."""
        self.close()
        if self.show:
            sys.stderr.write(f"kodolly {self._command}: {text}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, count: int) -> None:
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._command,
                unit=self._unit,
                unit_scale=self._unit == "B",
                initial=self.done - count,
            )
        self._bar.total = self.total
        self._bar.set_postfix_str(self._note, refresh=False)
        self._bar.update(count)

    def _line(self) -> str:
        rate = self.done / self.seconds if self.seconds else 0.0
        parts = [
            f"{self._amount(self.done)} of {self._amount(self.total)}"
            if self.total
            else self._amount(self.done),
            f"{self._amount(rate)}/s",
        ]
        if self.total and rate:
            parts.append(f"{max(self.total - self.done, 0) / rate:,.0f} s left")
        return ", ".join([*parts, *([self._note] if self._note else [])])

    def _amount(self, count: float) -> str:
        number, name = (count / 1e6, "MB") if self._unit == "B" else (count, f"{self._unit}s")
        decimals = 1 if isinstance(count, float) and number < 10 else 0  # 1 for a low rate
        return f"{number:,.{decimals}f} {name}"
