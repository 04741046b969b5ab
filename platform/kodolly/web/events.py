"""What the page's events do: from Gradio's raw values to a `Chat` and back to updates.

Values come unprocessed (`preprocess=False`): nothing a browser sends is opened as a file or made
into a component, and a page survives a restart of this process, which remembers nothing of it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from kodolly.web.chat import Chat, Choices
from kodolly.web.history import read, spoken, up_to_last_question
from kodolly.web.status import status_html
from kodolly.web.texts import Language, language_of, say
from kodolly.web.turn import INPUT_LIMIT, read_turn

Updates = tuple[Any, ...]
EXAMPLES = 3


class Events:
    """The handlers; `chat` is shared by all pages."""

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
        """A sent, edited, repeated or suggested question. Yields (input box, conversation)."""
        turn = read_turn(event._data, text, read(history))
        if turn is None:
            yield gr.skip(), gr.skip()
            return
        language = _language(request)
        if turn.cut:
            gr.Warning(say(language, "cut", limit=INPUT_LIMIT), title="")
        yield busy(clear=turn.typed), turn.history
        choices = Choices.read(model, system, temperature, top_p, max_tokens)
        async for state in self.chat.answer(turn.history, choices, language):
            yield gr.skip(), state

    def greet(self, request: gr.Request) -> Any:
        """Examples in the reader's language: Gradio translates labels, not these."""
        language = _language(request)
        numbers = range(1, EXAMPLES + 1)
        return gr.update(examples=[{"text": say(language, f"example_{n}")} for n in numbers])

    def undo(self, history: Any) -> Updates:
        """Takes the last question back into the input box. Gives (input box, conversation)."""
        kept = up_to_last_question(spoken(read(history)))
        if not kept:
            return idle(), gr.skip()
        return gr.update(value=kept[-1]["content"], **IDLE), kept[:-1]

    async def refresh(self, model: Any, seen: Any, request: gr.Request) -> Updates:
        """The live list. Gives (model picker, status line, what the page has seen now)."""
        available = await self.chat.live.get()
        language = _language(request)
        before = _load(seen)
        wanted = model or before.get("model")
        names = list(available.models)
        value = wanted if wanted in names else next(iter(names), None)
        # With nobody there the choice is kept in mind: it comes back with its worker.
        now = {"model": value or wanted, "models": names, "problem": available.problem}
        if now == before and model == value:
            return gr.skip(), gr.skip(), gr.skip()
        picker = gr.update(choices=[(name, name) for name in names], value=value)
        return picker, status_html(available, language), json.dumps(now)


BUSY = {"submit_btn": False, "stop_btn": True}
IDLE = {"submit_btn": True, "stop_btn": False}


def busy(*, clear: bool) -> Any:
    """The input box while an answer is made: Stop in place of Send."""
    return gr.update(value="", **BUSY) if clear else gr.update(**BUSY)


def idle() -> Any:
    """The input box when nothing is being made."""
    return gr.update(**IDLE)


def _language(request: gr.Request) -> Language:
    return language_of(request.headers.get("accept-language"))


def _load(seen: Any) -> dict[str, Any]:
    try:
        value = json.loads(seen)
    except (TypeError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
