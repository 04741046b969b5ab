"""Ids of responses, their items and conversations: a prefix that tells the kind, then random hex."""

from __future__ import annotations

import re
import secrets

RESPONSE, MESSAGE, CALL, OUTPUT, REASONING, CONVERSATION = (
    "resp_",
    "msg_",
    "fc_",
    "fco_",
    "rs_",
    "conv_",
)
PREFIXES = {
    "message": MESSAGE,
    "function_call": CALL,
    "function_call_output": OUTPUT,
    "reasoning": REASONING,
}
# What is looked up in the store at all; anything else is not an id of ours.
ID = re.compile(r"[a-z]{2,5}_[A-Za-z0-9_-]{1,128}")


def new_id(prefix: str) -> str:
    """An id that nobody can guess: 128 bits."""
    return prefix + secrets.token_hex(16)


def item_id(response_id: str, kind: str, index: int) -> str:
    """The id of a response's output item number `index`: the same whichever process makes it."""
    return f"{PREFIXES[kind]}{response_id.removeprefix(RESPONSE)}{index:04x}"


def with_id(item: dict[str, object]) -> dict[str, object]:
    """An input item with an id of its own, and not the client's: two responses may have the same item."""
    return {**item, "id": new_id(PREFIXES.get(str(item.get("type", "message")), MESSAGE))}
