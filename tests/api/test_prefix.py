"""What two prompts share, as numbers."""

import random
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from support.fleet import chat, completion

from kodolly.api.request import ApiRequest
from kodolly.api.routing.prefix import ROOT_TEXT, prefixes, rank, root


def of_messages(*messages: dict[str, Any]) -> ApiRequest:
    """A chat of these messages."""
    body = {"model": "m", "messages": list(messages)}
    return ApiRequest("/v1/chat/completions", body, "id", chat=True)


def test_a_turn_begins_with_the_turn_before() -> None:
    """The whole of one turn is among the prefixes of the next, and of no other chat."""
    first, second = prefixes(chat("q", system="s")), prefixes(chat("q", "a", "q2", system="s"))
    assert second.hashes[0] == first.hashes[-1]
    assert (first.continued, second.continued) == (False, True)
    assert not {*second.hashes} & {*prefixes(chat("other", "a", "q2", system="s")).hashes}
    assert not {*second.hashes} & {*prefixes(chat("q", "a", "q2", system="other")).hashes}


def test_a_system_prompt_alone_ties_nobody_together() -> None:
    """There is no prefix before the first question, unless there is no question at all."""
    assert len(prefixes(chat("q", system="s")).hashes) == 1
    assert len(prefixes(of_messages({"role": "system", "content": "s"})).hashes) == 1


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        [{"type": "text", "text": "질문"}],
        [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}],
        [{"type": "text", "text": ["no", {"text": 3}]}, {}],
        "\ud800",
    ],
)
def test_every_content_is_hashed(content: Any) -> None:
    """Parts, images, nothing at all and what no engine would take; equal ones alike."""
    calls = [of_messages({"role": "user", "content": content}) for _ in range(2)]
    assert prefixes(calls[0]) == prefixes(calls[1])
    assert root(calls[0]) == root(calls[1])
    assert prefixes(calls[0]) != prefixes(chat("else"))


def test_images_tell_chats_apart() -> None:
    """The same words about another image are another prompt."""
    words = {"type": "text", "text": "무엇입니까?"}
    images = [{"type": "image_url", "image_url": {"url": f"http://x/{n}"}} for n in range(2)]
    calls = [of_messages({"role": "user", "content": [words, image]}) for image in images]
    assert prefixes(calls[0]) != prefixes(calls[1])


def test_the_model_and_the_context_count() -> None:
    """Two models share no cache; Dolly's `context` is part of the prompt."""
    call, other = chat("q"), chat("q")
    other.body["model"] = "n"
    assert prefixes(call) != prefixes(other)
    assert root(call) != root(other)
    told = of_messages({"role": "user", "content": "q", "context": "c"})
    assert prefixes(told) != prefixes(call)


@pytest.mark.parametrize("ids", [False, True])
def test_a_longer_prompt_begins_with_the_shorter(ids: bool) -> None:
    """The deepest prefix of a prompt is one of any longer prompt that begins with it."""
    rng = random.Random(3)
    text: Any = rng.choices(range(1000), k=5000) if ids else "".join(rng.choices("가나다", k=5000))
    for length in (64, 100, 333, 4000):
        deepest = prefixes(completion(text[:length])).hashes[-1]
        assert deepest in prefixes(completion(text[: length + 500])).hashes
    assert len(prefixes(completion(text)).hashes) <= 25
    assert root(completion(text)) == root(completion(text[: ROOT_TEXT + 10]))


def test_a_root_is_the_same_in_every_process() -> None:
    """Replicas must agree, so no hash that is salted by process may be in it."""
    code = (
        "from support.fleet import chat, completion; from kodolly.api.routing.prefix import rank, root;"
        "call = chat('질문', 'a', 'b', system='s');"
        "print(root(call), root(completion([1, 2])), rank(root(call), 'http://w', 2.0))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert told[0] == told[1] != ""


def test_ranks_share_roots_by_weight() -> None:
    """Each worker is first for its share; one that goes gives up its own roots and no others."""
    weights = {"http://a": 1.0, "http://b": 2.0, "http://c": 1.0}
    roots = [root(chat(f"q{n}")) for n in range(2000)]

    def first(of: int, names: list[str]) -> str:
        return max(names, key=lambda name: rank(of, name, weights[name]))

    before = [first(of, [*weights]) for of in roots]
    assert Counter(before)["http://b"] == pytest.approx(1000, rel=0.1)
    assert Counter(before)["http://a"] == pytest.approx(500, rel=0.15)
    after = [first(of, ["http://a", "http://c"]) for of in roots]
    assert all(old in (new, "http://b") for old, new in zip(before, after, strict=True))
