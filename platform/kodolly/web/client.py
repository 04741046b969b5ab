"""The OpenAI client by which the page calls the API."""

from __future__ import annotations

import ssl

import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Timeout

from kodolly.http.tls import client_context

# An answer may wait in a long queue. But an API that is down should be noticed at once.
TIMEOUT = Timeout(300.0, connect=5.0)


def api_client(api: str, api_key: str | None, tls: ssl.SSLContext | None = None) -> AsyncOpenAI:
    """A client for the API at `api` (no path). It does not retry: the API does that.

    `tls`: which certificates of an https API are trusted (default: the machine's authorities).
    """
    return openai.AsyncOpenAI(
        base_url=api.rstrip("/") + "/v1",
        api_key=api_key or "none",
        max_retries=0,
        timeout=TIMEOUT,
        http_client=DefaultAsyncHttpxClient(
            timeout=TIMEOUT, trust_env=False, verify=tls or client_context()
        ),
    )
