"""The OpenAI client the page reaches the API with."""

from __future__ import annotations

import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

# A person waits in a queue of the engine for long, but a dead API is told at once.
TIMEOUT = Timeout(300.0, connect=5.0)


def api_client(api: str, api_key: str | None) -> AsyncOpenAI:
    """A client for the API at `api` (no path). It repeats nothing: retrying is the API's work."""
    return openai.AsyncOpenAI(
        base_url=api.rstrip("/") + "/v1",
        api_key=api_key or "none",
        max_retries=0,
        timeout=TIMEOUT,
        http_client=DefaultAsyncHttpxClient(timeout=TIMEOUT, trust_env=False),
    )
