"""The request that makes another engine give the same answer again, as far as the client has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kodolly.api.request import ApiRequest
from kodolly.api.resume.journal import Choice

# Where the engine's own text does not begin with its first token, or is none of one answer's.
NEVER = ("use_beam_search", "prompt_logprobs", "echo", "suffix", "best_of")


def is_replayable(body: dict[str, Any]) -> bool:
    """Whether an answer to this request can be given again and compared with what was sent."""
    return not any(body.get(name) for name in NEVER)


def is_deterministic(body: dict[str, Any]) -> bool:
    """Whether the same request gives the same answer, but for rounding: greedy, or with a seed."""
    return body.get("temperature") == 0 or body.get("seed") is not None


def replay_request(
    request: ApiRequest, choice: Choice, request_id: str, *, force: bool
) -> ApiRequest:
    """The request for one choice alone. `force`: the engine is to begin with the tokens sent.

    Engines give choice i of a request with a seed the seed + i.
    """
    body = dict(request.body)
    n = int(body.pop("n", None) or 1)
    if body.get("seed") is not None:
        body["seed"] += choice.index % n
    if not request.chat:
        body["prompt"] = request.prompt_of(choice.index)
    if force and choice.ids:
        body["vllm_xargs"] = {**(body.get("vllm_xargs") or {}), "kd_ids": list(choice.ids)}
    return replace(request, body=body, request_id=request_id)
