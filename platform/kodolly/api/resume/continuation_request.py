"""The request that makes another engine go on where one broke off."""

from __future__ import annotations

from typing import Any

from kodolly.api.request import Call
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
# Fields under which an engine keeps a state that token ids do not carry: a grammar, a parser, beams.
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


def resumable(body: dict[str, Any]) -> bool:
    """Whether an answer to this request can be continued from its tokens alone."""
    if any(body.get(name) for name in STATEFUL):
        return False
    if body.get("tools") and body.get("tool_choice") != "none":
        return False
    wanted = (body.get("response_format") or {}).get("type", "text")
    return bool(wanted == "text")


def can_go_on(journal: Journal) -> bool:
    """Whether what was sent tells enough to go on from."""
    return all(
        choice.plain and choice.told and (choice.prompt or not (choice.opened or journal.chat))
        for choice in journal.unfinished
    )


def tokens_left(call: Call, choice: Choice, context_length: int | None) -> int | None:
    """How many tokens an answer may still have; None if neither client nor engine set a bound."""
    body = call.body
    bound = body.get("max_tokens")
    if call.chat:
        bound = body.get("max_completion_tokens") or bound
    elif bound is None:
        bound = COMPLETION_LENGTH
    asked = None if bound is None else bound - len(choice.ids)
    room = None
    if context_length is not None:
        room = context_length - len(choice.prompt or ()) - len(choice.ids)
    known = [n for n in (asked, room) if n is not None]
    return min(known, default=None)


def continuation(call: Call, choice: Choice, max_tokens: int) -> dict[str, Any]:
    """The body of POST /v1/completions that continues `choice` by at most `max_tokens` tokens.

    Stop strings are left out: one may have begun in what was sent, so they are looked for here.
    """
    body = {key: value for key, value in call.body.items() if key not in LEFT_OUT}
    # Of several prompts, one whose answer has not begun is as the client wrote it.
    prompt = [*choice.prompt, *choice.ids] if choice.prompt else call.prompt_of(choice.index)
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
        body["seed"] = _wrapped(body["seed"] + len(choice.ids))
    if (wanted := asked_logprobs(call)) is not None:
        body["logprobs"] = wanted
    return body


def _wrapped(seed: int) -> int:
    """Within 64 bits, beyond which engines refuse a seed."""
    return (seed + 2**63) % 2**64 - 2**63


def asked_logprobs(call: Call) -> int | None:
    """Alternatives a token, as /v1/completions counts them; None if none were asked for."""
    if not call.chat:
        given = call.body.get("logprobs")
        return given if isinstance(given, int) and not isinstance(given, bool) else None
    return int(call.body.get("top_logprobs") or 0) if call.body.get("logprobs") else None
