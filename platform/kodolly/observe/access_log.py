"""The access log: one line for each request, as text or JSON. Never a prompt, an answer or a key.

It is written past `logging`, which would cost a short request as much again as all that is measured of it.
"""

from __future__ import annotations

import sys
import time

import orjson

from kodolly.logs import TIME, escape_controls
from kodolly.observe.requests import Measurement

LOGGER = "kodolly.access"
JSON_TIME = "%Y-%m-%dT%H:%M:%S%z"
UNKNOWN_PATH = "(unknown)"  # of a request for which there is no route


class AccessLog:
    """The access log of one process."""

    def __init__(self, style: str) -> None:
        """`style`: text or json."""
        self._is_json = style == "json"
        self._form = JSON_TIME if self._is_json else TIME
        self._next_second, self._date = 0, ""

    def write(self, method: str, path: str, status: int, request_id: str, m: Measurement) -> None:
        """One line. `path`: the route's template; `status` 0: the client went before an answer began.

        `m`: what was measured; what is not known of it is `-`, in JSON null.
        """
        now = time.time()
        if now >= self._next_second:
            self._next_second = int(now) + 1
            self._date = time.strftime(self._form, time.localtime(now))
        duration = time.perf_counter() - m.start
        first = None if m.first is None else m.first - m.start
        if self._is_json:
            sys.stderr.write(self._json(method, path, status, request_id, m, duration, first))
            return
        line = (
            f"{self._date} INFO    {LOGGER}: method={method} path={path} status={status}"
            f" duration_s={duration:.4f} request_id={request_id} model={m.model or '-'}"
            f" worker={m.worker or '-'} tokens_in={_text(m.tokens_in)} tokens_out={_text(m.tokens_out)}"
            f" time_to_first_token_s={'-' if first is None else f'{first:.4f}'} retries={m.retries}"
            f" outcome={m.outcome or '-'}"
        )
        if not line.isprintable():
            line = escape_controls(line)
        sys.stderr.write(line + "\n")

    def _json(
        self,
        method: str,
        path: str,
        status: int,
        request_id: str,
        m: Measurement,
        duration: float,
        first: float | None,
    ) -> str:
        fields = {
            "time": self._date,
            "level": "info",
            "logger": LOGGER,
            "method": method,
            "path": path,
            "status": status,
            "duration_s": round(duration, 4),
            "request_id": request_id,
            "model": m.model,
            "worker": m.worker,
            "tokens_in": m.tokens_in,
            "tokens_out": m.tokens_out,
            "time_to_first_token_s": first if first is None else round(first, 4),
            "retries": m.retries,
            "outcome": m.outcome,
        }
        return orjson.dumps(fields).decode() + "\n"


def _text(number: int | None) -> str | int:
    return "-" if number is None else number
