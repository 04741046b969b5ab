"""openai-python's embeddings, which come as base64 unless numbers are asked for."""

from __future__ import annotations

import openai
from flow import KEY, MODEL, URL, run

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0, timeout=240)
TEXTS = ["가나", "다라"]


def embeddings() -> None:
    made = client.embeddings.create(model=MODEL, input=TEXTS)
    assert [each.index for each in made.data] == [0, 1]
    assert len(made.data[0].embedding) == len(made.data[1].embedding) > 0
    assert made.data[0].embedding != made.data[1].embedding


def embeddings_as_numbers() -> None:
    coded = client.embeddings.create(model=MODEL, input=TEXTS[0]).data[0].embedding
    plain = client.embeddings.create(model=MODEL, input=TEXTS[0], encoding_format="float")
    assert all(abs(a - b) < 1e-5 for a, b in zip(coded, plain.data[0].embedding, strict=True))


if __name__ == "__main__":
    run(globals())
