"""One controller's table, put together from the lines of its watch stream."""

from __future__ import annotations

import orjson
from pydantic import ValidationError

from kodolly.log_safe import describe_error
from kodolly.protocol.wire import Change, Snapshot, WorkerRow


class BadLine(ValueError):
    """A line is no table or change, or a change before it was missed: the stream must start anew."""


class TableCopy:
    """The table as of the newest line."""

    def __init__(self) -> None:
        self._epoch = ""
        self._version = -1
        self._rows: dict[str, WorkerRow] = {}
        self._by_number: dict[int, WorkerRow] = {}

    def snapshot(self) -> Snapshot:
        """The whole table."""
        rows = list(self._rows.values())
        return Snapshot.model_construct(epoch=self._epoch, version=self._version, workers=rows)

    def take(self, line: bytes, *, first: bool) -> Change | None:
        """Takes a line; returns the change it brings, None for a whole table.

        `first`: of a connection, so that it must be a whole table. Raises BadLine.
        """
        try:
            data = orjson.loads(line)
            if "workers" in data:
                self._replace(Snapshot.model_validate(data))
                return None
            change = Change.model_validate(data)
        except (ValidationError, ValueError, TypeError) as error:
            raise BadLine(f"sent no table: {describe_error(error)}") from error
        if first or change.epoch != self._epoch or change.since > self._version:
            raise BadLine("a change was missed")
        self._apply(change)
        return change

    def _replace(self, snapshot: Snapshot) -> None:
        self._epoch, self._version = snapshot.epoch, snapshot.version
        self._rows = {row.name: row for row in snapshot.workers}
        self._by_number = {row.number: row for row in snapshot.workers}

    def _apply(self, change: Change) -> None:
        self._version = max(self._version, change.version)
        for name in change.removed:
            self._rows.pop(name, None)
        for row in change.rows:
            self._rows[row.name] = row
        if change.rows or change.removed:
            self._by_number = {row.number: row for row in self._rows.values()}
        for number, queue in change.loads:
            if (busy := self._by_number.get(number)) is not None:
                busy.queue_length = queue
