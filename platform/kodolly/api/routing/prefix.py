"""Hashes of a prompt's beginnings: they show which worker's KV cache may hold a part of it.

Two kinds of hash. Those of a prompt's prefixes are compared within this process only, so they use
Python's own fast one. Those that rank workers must be the same in every replica of the API.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kodolly.api.request import ApiRequest

# Lengths of a plain prompt at which its prefix is looked up: each a quarter longer than the last.
FIRST_CUT, GROWTH = 64, 1.25
# Characters of the system message, and of the first question, that tell conversations apart.
ROOT_TEXT = 1024
MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Prefixes:
    """Hashes of a prompt's prefixes, shortest first; `continued` once a chat has had an answer."""

    hashes: list[int]
    continued: bool


def prefixes(request: ApiRequest) -> Prefixes:
    """The prefixes of a prompt that may have been an earlier request's whole prompt. O(text)."""
    if request.chat:
        return _of_chat(request.model, request.body["messages"])
    return _of_prompt(request.model, _first_prompt(request.body["prompt"]))


def root(request: ApiRequest) -> int:
    """64 bits that stay the same throughout a conversation, in every process."""
    if request.chat:
        text = "\0".join(_opening(request.body["messages"]))
    else:
        prompt = _first_prompt(request.body["prompt"])
        text = prompt if isinstance(prompt, str) else str(prompt[:FIRST_CUT])
        text = text[:ROOT_TEXT]
    return _stable(f"{request.model}\0{text}")


def rank(of: int, worker: str, weight: float) -> float:
    """A worker's place for the root `of`: the highest is first (weighted rendezvous hashing).

    Each worker is first for its weight's share of all roots, and one that comes or goes moves only
    its own.
    """
    x = of ^ _of_worker(worker)
    # SplitMix64's finaliser, that every bit of the result depends on every bit of both.
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return weight / -math.log(((x >> 11) + 1) / (2**53 + 1))


def _of_chat(model: str, messages: list[dict[str, Any]]) -> Prefixes:
    """One hash a message from the first question on: a shared system prompt ties nobody together."""
    running, has_question, continued = hash(model), False, False
    hashes: list[int] = []
    for message in messages:
        role = message.get("role")
        running = hash((running, role, _text(message.get("content")), message.get("context")))
        has_question = has_question or role == "user"
        continued = continued or role == "assistant"
        if has_question:
            hashes.append(running)
    return Prefixes(hashes or [running], continued)


def _of_prompt(model: str, prompt: str | list[int]) -> Prefixes:
    running, start, cut = hash(model), 0, float(FIRST_CUT)
    hashes: list[int] = []
    while cut <= len(prompt):
        end = int(cut)
        part = prompt[start:end]
        running = hash((running, part if isinstance(part, str) else tuple(part)))
        hashes.append(running)
        start, cut = end, cut * GROWTH
    if not hashes:
        hashes.append(hash((running, prompt if isinstance(prompt, str) else tuple(prompt))))
    return Prefixes(hashes, False)


def _first_prompt(prompt: Any) -> str | list[int]:
    """Of several prompts the first: they all go to one worker."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return prompt[0]  # type: ignore[no-any-return]
    return prompt  # type: ignore[no-any-return]


def _text(content: Any) -> Any:
    """Something hashable for a message's content: its text, or that of its parts."""
    if not isinstance(content, list):
        return content
    return tuple(value for part in content for value in _strings(part.values()))


def _strings(values: Iterable[Any]) -> Iterable[str]:
    """The strings of a part, and of an object within it such as `image_url`."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from (inner for inner in value.values() if isinstance(inner, str))


def _opening(messages: list[dict[str, Any]]) -> Iterable[str]:
    """The texts up to the first question, each shortened."""
    for message in messages:
        text = _text(message.get("content"))
        yield text[:ROOT_TEXT] if isinstance(text, str) else " ".join(text or ())[:ROOT_TEXT]
        if message.get("role") == "user":
            break


def _stable(text: str) -> int:
    # JSON may hold half a surrogate pair, which strict UTF-8 refuses.
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


_of_worker = lru_cache(maxsize=4096)(_stable)
