"""The request that makes another engine continue an answer where one broke off."""

from __future__ import annotations

from functools import partial
from typing import Any

from kodolly.api.request import ApiRequest
from kodolly.api.resume.journal import Choice, Journal

# Of a chat or completion, what would be wrong or unknown in a continuation of token ids.
LEFT_OUT = frozenset(
    {
        "messages",
        "prompt",
        "max_completion_tokens",
        "n",
        "stop",
        "stream_options",
        "logprobs",
        "top_logprobs",
        "echo",
        "suffix",
        "best_of",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "add_generation_prompt",
        "continue_final_message",
        "add_special_tokens",
        "chat_template",
        "chat_template_kwargs",
        "documents",
        "truncate_prompt_tokens",
    }
)
# Fields under which an engine keeps a state that token ids do not hold: a grammar, a parser, beams.
STATEFUL = (
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "use_beam_search",
    "prompt_logprobs",
    "echo",
    "suffix",
    "functions",
)
COMPLETION_LENGTH = 16  # OpenAI's max_tokens of a completion that names none


def is_resumable(body: dict[str, Any]) -> bool:
    """Whether an answer to this request can be continued from its tokens alone."""
    if any(body.get(name) for name in STATEFUL):
        return False
    if body.get("tools") and body.get("tool_choice") != "none":
        return False
    kind = (body.get("response_format") or {}).get("type", "text")
    return bool(kind == "text")


def can_continue(journal: Journal) -> bool:
    """Whether the events that were sent hold all that a continuation needs."""
    return all(map(partial(_has_all_ids, chat=journal.chat), journal.unfinished))


def _has_all_ids(choice: Choice, *, chat: bool) -> bool:
    needs_prompt = choice.role_sent or chat
    has_prompt = bool(choice.prompt) or not needs_prompt
    return choice.is_plain_text and choice.has_token_ids and has_prompt


def tokens_left(request: ApiRequest, choice: Choice, context_length: int | None) -> int | None:
    """How many tokens an answer may still have; None if neither client nor engine set a bound."""
    body = request.body
    bound = body.get("max_tokens")
    if request.chat:
        bound = body.get("max_completion_tokens") or bound
    elif bound is None:
        bound = COMPLETION_LENGTH
    limits = []
    if bound is not None:
        limits.append(bound - len(choice.ids))
    if context_length is not None:
        limits.append(context_length - len(choice.prompt or ()) - len(choice.ids))
    return min(limits, default=None)


def continuation_request(request: ApiRequest, choice: Choice, max_tokens: int) -> dict[str, Any]:
    """The body of POST /v1/completions that continues `choice` by at most `max_tokens` tokens.

    Stop strings are left out: one may have begun in what was sent, so `text_cut` looks for them.
    """
    body = {key: value for key, value in request.body.items() if key not in LEFT_OUT}
    # Of several prompts, one whose answer has not begun is as the client wrote it.
    prompt = [*choice.prompt, *choice.ids] if choice.prompt else request.prompt_of(choice.index)
    body |= {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "stream": True,
        "return_token_ids": True,
    }
    if body.get("min_tokens"):
        body["min_tokens"] = min(max_tokens, max(0, body["min_tokens"] - len(choice.ids)))
    if body.get("seed") is not None:
        # The same seed would draw the same numbers again for other tokens.
        body["seed"] = _wrap(body["seed"] + len(choice.ids))
    if (count := logprobs_count(request)) is not None:
        body["logprobs"] = count
    return body


def _wrap(seed: int) -> int:
    """Within 64 bits, beyond which engines refuse a seed."""
    return (seed + 2**63) % 2**64 - 2**63


def logprobs_count(request: ApiRequest) -> int | None:
    """Alternatives a token, as /v1/completions counts them; None if the client wants none."""
    if not request.chat:
        count = request.body.get("logprobs")
        return count if isinstance(count, int) and not isinstance(count, bool) else None
    return int(request.body.get("top_logprobs") or 0) if request.body.get("logprobs") else None
