"""LlamaIndex: OpenAILike."""

from __future__ import annotations

from typing import Any

from flow import KEY, MODEL, QUESTION, TOKENS, URL, run
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike


def _model(**options: Any) -> OpenAILike:
    return OpenAILike(
        model=MODEL, api_base=f"{URL}/v1", api_key=KEY, max_tokens=TOKENS, temperature=0,
        max_retries=0, timeout=240, context_window=1024, **options,
    )  # fmt: skip


def chat() -> None:
    assert _model(is_chat_model=True).chat([ChatMessage(content=QUESTION)]).message.content


def chat_stream() -> None:
    stream = _model(is_chat_model=True).stream_chat([ChatMessage(content=QUESTION)])
    assert "".join(chunk.delta or "" for chunk in stream)


def completion() -> None:
    assert _model(is_chat_model=False).complete("One, two,").text


if __name__ == "__main__":
    run(globals())
