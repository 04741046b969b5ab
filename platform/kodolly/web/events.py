"""The handlers of the page's events. They take Gradio's raw values and return updates.

The values are not preprocessed (`preprocess=False`), so nothing that a browser sends is opened as a
file or turned into a component. And all state is in the browser, so that a page goes on working
after a restart of this process.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from kodolly.web.chat import Chat, Choices
from kodolly.web.history import read, up_to_last_question, without_notices
from kodolly.web.status import status_html
from kodolly.web.texts import Language, language_of, say
from kodolly.web.turn import INPUT_LIMIT, read_turn

Updates = tuple[Any, ...]
EXAMPLES = 3


class Events:
    """The event handlers. `chat` is shared by all pages."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    async def answer(
        self,
        text: Any,
        history: Any,
        model: Any,
        system: Any,
        temperature: Any,
        top_p: Any,
        max_tokens: Any,
        event: gr.EventData,
        request: gr.Request,
    ) -> AsyncIterator[Updates]:
        """Answers a question: a new, edited or repeated one, or an example.

        Yields updates of (input box, conversation).
        """
        turn = read_turn(event._data, text, read(history))
        if turn is None:
            yield gr.skip(), gr.skip()
            return
        language = _language(request)
        if turn.too_long:
            gr.Warning(say(language, "cut", limit=INPUT_LIMIT), title="")
        yield busy(clear=turn.from_input), turn.history
        choices = Choices.read(model, system, temperature, top_p, max_tokens)
        async for state in self.chat.answer(turn.history, choices, language):
            yield gr.skip(), state

    def greet(self, request: gr.Request) -> Any:
        """The examples in the reader's language. Gradio translates only labels by itself."""
        language = _language(request)
        numbers = range(1, EXAMPLES + 1)
        return gr.update(examples=[{"text": say(language, f"example_{n}")} for n in numbers])

    def undo(self, history: Any) -> Updates:
        """Moves the last question back into the input box. Returns (input box, conversation)."""
        messages = up_to_last_question(without_notices(read(history)))
        if not messages:
            return idle(), gr.skip()
        return gr.update(value=messages[-1]["content"], **IDLE), messages[:-1]

    async def refresh(self, model: Any, last_view: Any, request: gr.Request) -> Updates:
        """Updates the models and the status. Returns (model picker, status line, view).

        The view is what the page shows now, as JSON. It is kept in the page, and comes back as
        `last_view`, so that a page is updated only when something has changed.
        """
        available = await self.chat.live.get()
        language = _language(request)
        before = _load(last_view)
        choice = model or before.get("model")
        names = list(available.models)
        value = choice if choice in names else next(iter(names), None)
        # While no model is available the choice is remembered, for when its worker is back.
        now = {"model": value or choice, "models": names, "problem": available.problem}
        if now == before and model == value:
            return gr.skip(), gr.skip(), gr.skip()
        picker = gr.update(choices=[(name, name) for name in names], value=value)
        return picker, status_html(available, language), json.dumps(now)


BUSY = {"submit_btn": False, "stop_btn": True}
IDLE = {"submit_btn": True, "stop_btn": False}


def busy(*, clear: bool) -> Any:
    """The input box while an answer is generated: with Stop instead of Send."""
    return gr.update(value="", **BUSY) if clear else gr.update(**BUSY)


def idle() -> Any:
    """The input box while no answer is generated."""
    return gr.update(**IDLE)


def _language(request: gr.Request) -> Language:
    return language_of(request.headers.get("accept-language"))


def _load(view: Any) -> dict[str, Any]:
    try:
        value = json.loads(view)
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
