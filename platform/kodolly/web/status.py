"""The quiet line at the top: is anybody there to answer."""

from __future__ import annotations

import html

from kodolly.web.models import Available
from kodolly.web.texts import Language, say


def status_html(available: Available, language: Language) -> str:
    """One line of HTML: a dot and a sentence."""
    if available.problem:
        return _line("bad", say(language, f"status_{available.problem}"))
    return _line("good", say(language, "ready"))


def waiting_html(language: Language = "ko") -> str:
    """The line before the first look at the API."""
    return _line("wait", say(language, "connecting"))


def _line(mood: str, sentence: str) -> str:
    return f'<span class="kd-status kd-{mood}" role="status"><i></i>{html.escape(sentence)}</span>'
