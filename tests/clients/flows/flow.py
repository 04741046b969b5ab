"""Runs the flows of one client library and prints a line of JSON for each.

    python flows/openai_python.py ROOT_URL MODEL [FLOW ...]

A flow is a function without parameters whose name does not begin with an underscore. It raises if the
library, or what it got, is not as its users expect. ROOT_URL is the server's without /v1.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Any

URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else ""
MODEL = sys.argv[2] if len(sys.argv) > 2 else ""
KEY = os.environ.get("CLIENT_KEY", "none")
QUESTION = "What is the capital of France?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
TOKENS = 24  # most of an answer
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "Weather of a city.", "parameters": CITY},
}


def run(module: dict[str, Any]) -> None:
    """Runs the flows that a script defines, or those named on the command line."""
    own = [
        (name, flow)
        for name, flow in module.items()
        if inspect.isfunction(flow)
        and flow.__module__ == module["__name__"]
        and not name.startswith("_")
    ]
    for name, flow in own:
        if sys.argv[3:] and name not in sys.argv[3:]:
            continue
        print(json.dumps({"flow": name, **_outcome(flow)}), flush=True)


def refused(kind: type[Exception], call: Callable[..., Any], **body: Any) -> None:
    """Raises AssertionError unless the call fails with this kind of error."""
    try:
        call(**body)
    except kind:
        return
    raise AssertionError(f"{body} was taken")


def _outcome(flow: Callable[[], Any]) -> dict[str, Any]:
    try:
        result = flow()
        if inspect.isawaitable(result):
            asyncio.run(_awaited(result))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return {"ok": False, "error": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
    return {"ok": True}


async def _awaited(result: Any) -> None:
    await result
