"""One look at a running KoDolly: the controller's table, and the metrics of controller and API."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from kodolly.http.client import CALL_ERRORS, describe_call_error, request_bounded

LINE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
MAX_ANSWER = 64 * 2**20  # bytes
TIMEOUT = 5.0  # seconds for all of it
Labels = dict[str, str]


@dataclass(frozen=True)
class Sample:
    """The stack as of `time` (by the monotonic clock). `problems`: which process did not answer, and why."""

    time: float
    workers: list[dict[str, Any]] = field(default_factory=list)  # rows of the table
    metrics: dict[str, list[tuple[Labels, float]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def sum(self, name: str, **labels: str) -> float:
        """The sum of the metric's samples that have these labels."""
        rows = self.metrics.get(name, ())
        return sum(value for own, value in rows if labels.items() <= own.items())

    def values(self, name: str, label: str) -> set[str]:
        """The values of a label of a metric."""
        return {labels[label] for labels, _ in self.metrics.get(name, ()) if label in labels}


async def take(client: httpx.AsyncClient, controller: str, api: str, token: str | None) -> Sample:
    """Asks controller and API at once; what does not answer is a problem, and no error."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    paths = (f"{controller}/workers", f"{controller}/metrics", f"{api}/metrics")
    answers = await asyncio.gather(*(_get(client, url, headers) for url in paths))
    problems = [answer for answer in answers if isinstance(answer, str)]
    table, *metrics = answers
    rows: list[dict[str, Any]] = []
    if isinstance(table, bytes):
        try:
            rows = orjson.loads(table)["workers"]
        except (ValueError, KeyError, TypeError):
            problems.append(f"{paths[0]}: no table of workers")
    parsed: dict[str, list[tuple[Labels, float]]] = {}
    for text in metrics:
        if isinstance(text, bytes):
            for name, labels, value in parse(text.decode("utf-8", "replace").split("\n")):
                parsed.setdefault(name, []).append((labels, value))
    return Sample(time.monotonic(), rows, parsed, problems)


def parse(lines: Iterable[str]) -> Iterable[tuple[str, Labels, float]]:
    """Name, labels and value of each sample in Prometheus' text format; other lines are skipped."""
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None:
            continue
        labels = {name: _unescaped(value) for name, value in LABEL.findall(match[2] or "")}
        try:
            yield match[1], labels, float(match[3])
        except ValueError:
            continue


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], value)


async def _get(client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> bytes | str:
    """The body of an answer; a sentence where there is none."""
    try:
        async with asyncio.timeout(TIMEOUT):
            status, body = await request_bounded(
                client, "GET", url, headers=headers, limit=MAX_ANSWER, timeout=None
            )
    except CALL_ERRORS as error:
        return f"{url}: {describe_call_error(error)}"
    if status in (401, 403):
        return f"{url}: answered {status}: give the token (--token-file, KODOLLY_TOKEN)"
    return body if status == 200 else f"{url}: answered {status}"
