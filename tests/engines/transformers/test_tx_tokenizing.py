"""Tokenizing is off the event loop, in turn, bounded, and ends with the client."""

import asyncio
import io
import json
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.processes import eventually
from support.tiny_models import CONTEXT

from kodolly.engines.token_bytes import longest_token, longest_token_of
from kodolly.engines.transformers.text import Text
from kodolly.engines.transformers.tokenizing import (
    PIECE,
    SLACK,
    Tokenizing,
)
from kodolly.errors import ContextOverflow, NoWorker

from .conftest import NAME, EngineProcess

LIMIT = 1000
HEADERS = {"Authorization": "Bearer secret"}
JSON = {"Content-Type": "application/json"}
EMBEDDED = Path(__file__).parents[3] / "adapters/kodolly_adapters/embedded/kodolly-ko-8m"


class Letters:
    """A tokenizer of which each character is a token. It waits for `gate` before each text."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        assert self.gate.wait(30)
        self.texts.append(text)
        return [0] * len(text) + [1] * special


def encode(tokenizing: Tokenizing, letters: Letters, text: str, limit: int = LIMIT) -> Any:
    return tokenizing.encode(letters, text, special=True, limit=limit, field="prompt")


async def test_a_text_that_cannot_fit_is_refused_unread() -> None:
    """By its bytes and the longest token; one that might fit is encoded."""
    tokenizing, letters = Tokenizing(4), Letters()
    tokenizing.longest_token = 6
    with pytest.raises(ContextOverflow) as refusal:
        await encode(tokenizing, letters, "가" * (2 * LIMIT + 2))
    assert (refusal.value.code, refusal.value.param) == ("context_length_exceeded", "prompt")
    assert letters.texts == []
    assert len(await encode(tokenizing, letters, "가" * 2 * LIMIT)) == 2 * LIMIT + 1


async def test_without_a_known_bound_a_long_text_is_refused_after_its_first_pieces() -> None:
    """As soon as they have twice as many tokens as fit, and never encoded whole."""
    tokenizing, letters = Tokenizing(4), Letters()
    with pytest.raises(ContextOverflow):
        await encode(tokenizing, letters, "a" * 100 * PIECE, limit=PIECE)
    assert [len(text) for text in letters.texts] == [PIECE] * (SLACK + 1)
    letters.texts.clear()
    text = "a" * (SLACK * PIECE)  # too long as well, but that is for its exact count to say
    assert len(await encode(tokenizing, letters, text, limit=PIECE)) == len(text) + 1


async def test_others_have_their_turn_between_the_pieces_of_a_long_text() -> None:
    """A short text comes after one piece of the long one."""
    tokenizing, letters = Tokenizing(4), Letters()
    letters.gate.clear()
    long = asyncio.create_task(encode(tokenizing, letters, "a" * 9 * PIECE, limit=10 * PIECE))
    await asyncio.sleep(0)
    short = asyncio.create_task(encode(tokenizing, letters, "short"))
    await asyncio.sleep(0)
    letters.gate.set()
    await short
    await long
    assert letters.texts.index("short") <= 2


async def test_who_leaves_is_not_encoded() -> None:
    """What has not begun by then never begins, be it a text that waits or the next piece."""
    tokenizing, letters = Tokenizing(4), Letters()
    letters.gate.clear()
    long = asyncio.create_task(encode(tokenizing, letters, "a" * 9 * PIECE, limit=10 * PIECE))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(encode(tokenizing, letters, "waiting"))
    await asyncio.sleep(0)
    long.cancel()
    waiting.cancel()
    await asyncio.gather(long, waiting, return_exceptions=True)
    letters.gate.set()
    await encode(tokenizing, letters, "last")
    assert "waiting" not in letters.texts
    assert len(letters.texts) <= 2


async def test_no_more_requests_are_taken_than_may_wait() -> None:
    """The next one is told to come again, and has a place once another one has left."""
    tokenizing = Tokenizing(2)
    with tokenizing.place():
        with tokenizing.place(), pytest.raises(NoWorker, match="full"), tokenizing.place():
            pass
        assert tokenizing.requests == 1
        with tokenizing.place():
            assert tokenizing.requests == 2
    assert tokenizing.requests == 0


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60) | st.text("가각 ㄱㅏ\u1100\u1161\u11a8 a\n", max_size=200))
def test_no_token_stands_for_more_bytes_than_the_bound_says(text: str) -> None:
    """With the embedded model's tokenizer, for any text."""
    longest = longest_token_of(EMBEDDED)
    assert longest is not None
    assert len(text.encode()) <= longest * len(_embedded().encode(text, special=False))


_cache: list[Text] = []


def _embedded() -> Text:
    if not _cache:
        _cache.append(Text(EMBEDDED))
    return _cache[0]


def byte_level(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json with tokens of at most five bytes."""
    tokenizer = {
        "model": {"type": "BPE", "vocab": {"a": 0, "abcde": 1}},
        "pre_tokenizer": {"type": "ByteLevel"},
        "normalizer": None,
        "added_tokens": [{"content": "가"}],
    }
    return tokenizer | changes


@pytest.mark.parametrize(
    ("changes", "longest"),
    [
        ({}, 5),
        ({"added_tokens": [{"content": "가" * 4}]}, 12),
        ({"normalizer": {"type": "NFC"}}, 20),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}}, None),
        ({"added_tokens": [{"content": "<x>", "rstrip": True}]}, None),
        ({"model": {"type": "Unigram", "vocab": []}}, None),
        ({"pre_tokenizer": {"type": "Whitespace"}}, None),
    ],
)
def test_the_longest_token_is_known_only_where_nothing_is_removed(
    changes: dict[str, Any], longest: int | None
) -> None:
    """None is no bound; a step that removes text or is not known takes the bound away."""
    assert longest_token(byte_level(**changes)) == longest
    fallback = {"pre_tokenizer": None, "normalizer": {"type": "Prepend"}}
    model = {"type": "BPE", "vocab": {"▁가나": 1}, "byte_fallback": True}
    assert longest_token(byte_level(**fallback, model=model)) == 9


def test_a_directory_without_a_tokenizer_file_has_no_bound(tmp_path: Path) -> None:
    """Nor one whose file is broken; the tokenizer itself says what is wrong with it."""
    assert longest_token_of(tmp_path) is None
    for text in ("", "[]", '{"model": {"type": "BPE", "byte_fallback": true, "vocab": 5}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        assert longest_token_of(tmp_path) is None


async def test_huge_prompts_stall_nobody(engine: EngineProcess) -> None:
    """Four prompts of 4 MB beside a stream: each is a 400 at once, and the stream goes on."""
    text = "안녕하세요 세계 " * 180_000
    chat = {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 4}
    completion = {"model": NAME, "prompt": text, "max_tokens": 4}
    ask = {"model": NAME, "prompt": "가", "max_tokens": 2000, "ignore_eos": True, "stream": True}
    async with aiohttp.ClientSession(engine.url, headers=HEADERS) as session:

        async def refused(path: str, body: dict[str, Any]) -> None:
            data = io.BytesIO(json.dumps(body, ensure_ascii=False).encode())
            async with session.post(path, data=data, headers=JSON) as answer:
                error = (await answer.json())["error"]
            length = f"maximum context length is {CONTEXT}"
            assert (answer.status, length in error["message"]) == (400, True)

        async with session.post("/v1/completions", json=ask) as stream:
            await stream.content.readline()
            calls = [refused("/v1/chat/completions", chat) for _ in range(2)]
            await asyncio.gather(*calls, *(refused("/v1/completions", completion) for _ in "ab"))
            assert b"[DONE]" in await stream.content.read()
    async with asyncio.timeout(20):
        while await engine.metric("requests_tokenizing") != 0:
            await asyncio.sleep(0.01)


async def test_a_request_that_is_tokenized_is_load() -> None:
    """The engine is not idle meanwhile: its silence is judged."""
    tokenizing = Tokenizing(4)
    letters = Letters()
    letters.gate.clear()

    async def one() -> None:
        with tokenizing.place():
            await encode(tokenizing, letters, "text")

    task = asyncio.create_task(one())
    await eventually(lambda: tokenizing.requests == 1)
    letters.gate.set()
    await task
    assert tokenizing.requests == 0
