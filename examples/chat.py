"""One question, one answer, by the `openai` client:

    python examples/chat.py "안녕하세요?"

OPENAI_BASE_URL (default http://127.0.0.1:8000/v1) and OPENAI_API_KEY say where and with which key; MODEL
names the model (default: the first that is served).
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI


def main(argv: list[str]) -> int:
    """Print the answer to the question in `argv`."""
    question = " ".join(argv) or "안녕하세요?"
    client = OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    model = os.environ.get("MODEL") or client.models.list().data[0].id
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
    )
    print(answer.choices[0].message.content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
