"""The status line at the top of the page: whether a model is available."""

from __future__ import annotations

import html

from kodolly.web.models import ModelList
from kodolly.web.texts import Language, say


def status_html(models: ModelList, language: Language) -> str:
    """One line of HTML: a dot and a sentence."""
    if models.problem:
        return _line("bad", say(language, f"status_{models.problem}"))
    return _line("good", say(language, "ready"))


def waiting_html(language: Language = "ko") -> str:
    """The line before the API has answered for the first time."""
    return _line("wait", say(language, "connecting"))


def _line(mood: str, sentence: str) -> str:
    return f'<span class="kd-status kd-{mood}" role="status"><i></i>{html.escape(sentence)}</span>'
