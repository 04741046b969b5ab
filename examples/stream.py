"""A conversation in the terminal, each answer printed as it streams:

    python examples/stream.py

An empty line or Ctrl-D ends it. OPENAI_BASE_URL (default http://127.0.0.1:8000/v1), OPENAI_API_KEY and
MODEL (default: the first that is served) are read as in chat.py.
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam


def main() -> int:
    """Ask what is typed until an empty line; the whole conversation goes along each time."""
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = os.environ.get("MODEL") or client.models.list().data[0].id
    messages: list[ChatCompletionMessageParam] = []
    while question := ask():
        messages.append({"role": "user", "content": question})
        answer = ""
        # Leaving the `with` early, by Ctrl-C, closes the stream: the engine stops at once, too.
        with client.chat.completions.create(
            model=model, messages=messages, temperature=0, stream=True
        ) as stream:
            for chunk in stream:
                text = (chunk.choices[0].delta.content if chunk.choices else None) or ""
                answer += text
                print(text, end="", flush=True)
        print()
        messages.append({"role": "assistant", "content": answer})
    return 0


def ask() -> str:
    """The next question; "" at the end of the input."""
    try:
        return input("> ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
