"""The page of what each engine makes of the same requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.compatibility.effects import BROKEN, IGNORED, REFUSED, UNCLEAR, WORKS, Answer
from benchmarks.compatibility.requests import Case

HEAD = """\
# What each engine makes of the same requests

`benchmarks/compatibility/run.py` wrote this page: {count} requests, each to KoDolly on the transformers engine, to KoDolly on
vLLM 0.32 (CPU), and to a vLLM that KoDolly's worker is attached to with `--model DIR`. The model is SmolLM2-135M-Instruct
in float32, whose chat template has no tools. A field is *ignored* when an answer comes that does not show what was asked for.

| | {engines} |
|---|{rules}|
"""
MEANING = {
    WORKS: "works",
    REFUSED: "refused, the field named",
    UNCLEAR: "refused, no field named",
    IGNORED: "ignored",
    BROKEN: "failed (5xx)",
}


@dataclass
class Row:
    """One request, and by engine the verdict and the answer."""

    case: Case
    results: list[tuple[str, Answer]]

    @property
    def verdicts(self) -> set[str]:
        return {verdict for verdict, _ in self.results}

    @property
    def differs(self) -> bool:
        """Whether engines that both answer do so with other text, where one text is expected."""
        texts = {a.text for verdict, a in self.results if verdict == WORKS}
        return len(texts) > 1 and self.case.body.get("temperature") == 0


def page(engines: Sequence[str], rows: Sequence[Row]) -> str:
    """The whole page."""
    text = HEAD.format(
        count=len(rows), engines=" | ".join(engines), rules="|".join("---:" for _ in engines)
    )
    counts = [Counter(row.results[i][0] for row in rows) for i in range(len(engines))]
    for verdict, meaning in MEANING.items():
        text += f"| {meaning} | " + " | ".join(str(count[verdict]) for count in counts) + " |\n"
    other = [row for row in rows if row.differs]
    text += f"\nGreedy answers that differ between engines which both answer: {len(other)}.\n"
    text += "\n## Not the same on every engine\n\n"
    text += f"| request | {' | '.join(engines)} |\n|---|{'|'.join('---' for _ in engines)}|\n"
    for row in rows:
        if len(row.verdicts) > 1 or row.differs:
            text += _line(row, [_cell(row, i) for i in range(len(engines))])
    text += "\n## The same on every engine\n\n"
    for verdict, meaning in MEANING.items():
        names = [row.case.name for row in rows if row.verdicts == {verdict} and not row.differs]
        if names:
            text += f"**{meaning}** ({len(names)}): " + "; ".join(map(_code, names)) + "\n\n"
    return text.rstrip() + "\n"


def _cell(row: Row, index: int) -> str:
    verdict, answer = row.results[index]
    if verdict in (REFUSED, UNCLEAR, BROKEN):
        return f"{MEANING[verdict]}: {_escaped(str(answer.error.get('message') or answer.status))[:110]}"
    return f"other text: {_escaped(answer.text)[:50]}" if row.differs else MEANING[verdict]


def _line(row: Row, cells: list[str]) -> str:
    return f"| {_code(row.case.name)} | {' | '.join(cells)} |\n"


def _code(name: str) -> str:
    return f"`{_escaped(name)}`"


def _escaped(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|").replace("`", "'")
