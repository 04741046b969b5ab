"""Pages nested without end: bounded in time and memory, and no text is lost."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.child_memory import PEAK_MIB

SIZE = 625 * 1024
UNITS = {
    "lists": ("<ul><li>", ""),
    "lists with text": ("<ol><li>가", "</li></ol>"),
    "tables": ("<table><tr><td>", ""),
    "tables with text": ("<table><tr><td>가", "</td></tr></table>"),
    "tables of two rows": ("<table><tr><td>가</td><td>나</td></tr><tr><td>다</td><td>", ""),
    "lists in tables": ("<table><tr><td><ul><li>가", ""),
    "quotes": ("<blockquote>가", "</blockquote>"),
    "blocks": ("<div>", "</div>"),
    "inline": ("<em>가", "</em>"),
    "definitions": ("<dl><dt>가<dd>나", ""),
    "hidden": ("<form>", "</form>"),
    "header": ("<header>", "</head>"),
    "formulas": ("<math>", "</math>"),
    "wide cells": ("<td colspan=100 rowspan=9999>가<tr>", ""),
}
CHILD = """
import json, resource, sys
from kodolly_adapters.convert.cleaning.tokens import counter
from kodolly_adapters.convert.markdown.page import render
from kodolly_adapters.convert.markdown.windows import windows
opening, closing, size = json.load(sys.stdin)
number = size // len(opening + closing)
html = opening * number + "답" + closing * number
at = html.index("답")
text, (span,) = render(html, [(at, at + 1)])
(window,) = windows(html, [(at, at + 1)], 384, counter(None))
letters = {letter: (html.count(letter), text.count(letter)) for letter in "가나다"}
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([len(text), text[slice(*span)], window.answer, letters, peak_mib(),
                  usage.ru_utime + usage.ru_stime]))
"""


@pytest.mark.parametrize("unit", UNITS)
def test_a_page_nested_without_end_is_bounded(unit: str) -> None:
    """625 KiB of nested tags take some hundred megabytes and seconds at most, and the answer is still found."""
    command = [sys.executable, "-c", PEAK_MIB + CHILD]
    given = json.dumps([*UNITS[unit], SIZE])
    run = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=120, check=True
    )
    length, answer, in_window, letters, megabytes, seconds = json.loads(run.stdout)
    assert (answer, in_window) == ("답", "답")
    assert length < 20 * SIZE
    assert megabytes < 400
    assert seconds < 20
    if unit != "wide cells":  # whose text is copied into the rows they span
        assert all(inside == outside for inside, outside in letters.values()), "text is lost"
