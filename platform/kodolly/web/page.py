"""The page's layout and its events. Why gr.Blocks: docs/decisions/0005-web-page.md."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr

from kodolly.web.chat import TOKENS_LIMIT, Chat, Choices
from kodolly.web.events import Events, idle
from kodolly.web.status import waiting_html
from kodolly.web.texts import EN, GRADIO_FIXED_KO, GRADIO_KO, KO
from kodolly.web.turn import INPUT_LIMIT

REFRESH = 3.0  # seconds between two updates of the models and the status
ANSWERS = 128  # answers that are generated at once, for all pages
WAITING = 512  # events that may wait; then Gradio says that its queue is full

LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]


def build_page(
    chat: Chat,
    *,
    title: str = "KoDolly",
    max_tokens: int = Choices.max_tokens,
    temperature: float = Choices.temperature,
) -> gr.Blocks:
    """The chat page as Gradio Blocks. Only `chat` calls the API."""
    t = translations()
    page = gr.Blocks(title=title, analytics_enabled=False, fill_height=True, fill_width=True)
    page.max_threads = ANSWERS + 64  # for all answers and some other events
    with page:
        with gr.Sidebar(position="right", open=False, width=320, elem_id="kd-settings"):
            settings = _settings(t, max_tokens, temperature)
        with gr.Row(elem_id="kd-head"):
            gr.HTML(_brand(title), elem_id="kd-brand", padding=False)
            status = gr.HTML(waiting_html(), elem_id="kd-status", padding=False)
            picker = gr.Dropdown(
                choices=[],
                label=t("model"),
                show_label=False,
                container=False,
                filterable=False,
                interactive=True,
                elem_id="kd-model",
            )
        chatbot = _chatbot(t)
        box = _input(t)
        gr.HTML(f"<p>{t('foot')}</p>", elem_id="kd-foot", padding=False)
        view = gr.Textbox(visible=False)
        _wire(page, Events(chat), box, chatbot, picker, settings, status, view)
    page.queue(max_size=WAITING, default_concurrency_limit=None, api_open=False)
    return page


@cache
def translations() -> gr.I18n:
    """The page's labels in both languages, and Gradio labels that its Korean translation lacks."""
    return gr.I18n(ko=KO | GRADIO_KO, en=EN)


def theme() -> gr.themes.Base:
    """Colours and fonts. Only fonts on the reader's machine: nothing is downloaded."""
    sans = (
        "Pretendard",
        "Apple SD Gothic Neo",
        "Noto Sans KR",
        "Noto Sans CJK KR",
        "Malgun Gothic",
    )
    more = ("NanumSquareRound", "NanumGothic", "system-ui", "sans-serif")
    mono = ("D2Coding", "NanumGothicCoding", "ui-monospace", "Consolas", "monospace")
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=[*sans, *more],
        font_mono=list(mono),
    )


def asset(name: str) -> str:
    """The content of a text file in this package."""
    return files("kodolly.web").joinpath(name).read_text(encoding="utf-8")


def head_html() -> str:
    """The page's own script, and the texts that it needs."""
    both: dict[str, dict[str, str]] = {"ko": KO, "en": EN}
    words: dict[str, Any] = {
        # An update that changes none of the streamed event's outputs: input box and conversation.
        "unchanged": [{"__type__": "update"}, {"__type__": "update"}],
        "fixed": GRADIO_FIXED_KO,
        "reconnecting": {language: texts["reconnecting"] for language, texts in both.items()},
        "names": {language: _names(texts) for language, texts in both.items()},
    }
    # "</script" in a text would end the script element.
    data = json.dumps(words, ensure_ascii=False).replace("</", "<\\/")
    return f"<script>const KODOLLY = {data};\n{asset('page.js')}</script>"


def _names(texts: dict[str, str]) -> dict[str, str]:
    """CSS selector -> accessible name, for buttons that Gradio gives none."""
    return {
        "#kd-input .submit-button": texts["send"],
        "#kd-input .stop-button": texts["stop"],
        "#kd-settings .toggle-button": texts["settings"],
    }


def _brand(title: str) -> str:
    return f'<h1 class="kd-brand">{asset("logo.svg")}<span>{escape(title)}</span></h1>'


def _chatbot(t: gr.I18n) -> gr.Chatbot:
    return gr.Chatbot(
        label=t("conversation"),
        show_label=False,
        container=False,
        elem_id="kd-chat",
        scale=1,
        height=None,
        layout="bubble",
        editable="user",
        buttons=["copy"],
        latex_delimiters=LATEX,
        sanitize_html=True,
        group_consecutive_messages=False,
        feedback_options=None,
        allow_file_downloads=False,
        placeholder=f"## {t('welcome')}",
    )


def _input(t: gr.I18n) -> gr.Textbox:
    return gr.Textbox(
        placeholder=t("placeholder"),
        label=t("message"),
        show_label=False,
        container=False,
        lines=1,
        max_lines=8,
        max_length=INPUT_LIMIT,
        submit_btn=True,
        stop_btn=False,
        autofocus=True,
        elem_id="kd-input",
        html_attributes=gr.InputHTMLAttributes(enterkeyhint="send", autocomplete="off"),
    )


def _settings(t: gr.I18n, max_tokens: int, temperature: float) -> list[Any]:
    """System prompt, temperature, top-p and length, in the order of `Events.answer`'s parameters."""
    gr.Markdown(t("settings"), elem_classes="kd-settings-title")
    return [
        gr.Textbox(label=t("system"), info=t("system_hint"), lines=4, max_lines=10),
        gr.Slider(0, 2, temperature, step=0.1, label=t("temperature"), info=t("temperature_hint")),
        gr.Slider(0.05, 1, Choices.top_p, step=0.05, label=t("top_p"), info=t("top_p_hint")),
        gr.Slider(
            16,
            min(max(4096, max_tokens), TOKENS_LIMIT),
            max_tokens,
            step=16,
            label=t("max_tokens"),
            info=t("max_tokens_hint"),
        ),
    ]


def _wire(
    page: gr.Blocks,
    events: Events,
    box: gr.Textbox,
    chatbot: gr.Chatbot,
    picker: gr.Dropdown,
    settings: list[Any],
    status: gr.HTML,
    view: gr.Textbox,
) -> None:
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # All ways to ask are one event, so a page has one answer at a time, and Stop ends any of them.
    answer = gr.on(
        [box.submit, chatbot.retry, chatbot.edit, chatbot.example_select, chatbot.option_select],
        events.answer,
        [box, chatbot, picker, *settings],
        [box, chatbot],
        preprocess=False,
        trigger_mode="once",
        concurrency_limit=ANSWERS,
        concurrency_id="answer",
        **quiet,
    )
    now: dict[str, Any] = {"queue": False, "preprocess": False, **quiet}
    # When the answer ends, for whatever reason, Send is shown again.
    answer.then(idle, None, [box], **now)
    gr.on([box.stop, chatbot.clear], idle, None, [box], cancels=[answer], **now)
    chatbot.undo(events.undo, [chatbot], [box, chatbot], cancels=[answer], **now)
    look = {"fn": events.refresh, "inputs": [picker, view], "outputs": [picker, status, view]}
    gr.Timer(REFRESH).tick(**look, **now)
    page.load(events.greet, None, [chatbot], queue=False, **quiet)
    saved = [chatbot, picker, *settings]
    restored = page.load(None, saved, saved, js="(...values) => kodolly.restore(...values)")
    restored.then(**look, **now)
    gr.on(
        [component.change for component in saved],
        None,
        saved,
        None,
        js="(...values) => kodolly.save(...values)",
        show_progress="hidden",
    )
