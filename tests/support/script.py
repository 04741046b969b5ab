"""What a scripted engine answers: a list of tokens, a length, a pace, and faults to show on purpose.

A script is pure data plus arithmetic: it knows no HTTP. Token ids are reversible on purpose:
a prompt's ids are its UTF-8 bytes (0..255), the script's own tokens are `FIRST_ID` and up, so an
engine that is handed prompt ids + generated ids can go on exactly where another one stopped.
"""

import codecs
import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

EOS_ID = 256
FIRST_ID = 1000
# Ids of the marks of a numbered answer: MARK_ID + seed * MARKS + which.
MARK_ID, MARKS, SEEDS = 1_000_000, 10_000, 1000

Token = str | bytes  # bytes: a token that ends inside a character, as byte-level BPE makes them

# Syllables, a particle with its space, jamo, a split syllable, split and joined emoji, Markdown,
# JSON's escapes, a character outside the BMP. Ends on a whole character, so it can be repeated.
KOREAN_TOKENS: tuple[Token, ...] = (
    "물론이죠",
    ",",
    " 안녕하세요!",
    " 저는",
    " 한국",
    "어로",
    " 답",
    "하는",
    " 모델",
    "입니다",
    ".",
    "\n",
    b"\xea\xbf",  # 꿈, cut after its second byte
    b"\x88",
    "을",
    " 꾸",
    "는",
    " 밤",
    ",",
    " ㅋ",
    "ㅋㅋ",
    " ",
    b"\xf0\x9f",  # 🙂, cut in the middle
    b"\x99\x82",
    " 👩",
    "\u200d",  # ZERO WIDTH JOINER: the two emoji beside it are one sign
    "💻",
    " **",
    "굵은",
    " 글씨",
    "**",
    ' "인용"',
    " \\",
    "뷁",
    " 𠮷",
    " 12",
    "3",
    " abc",
    " 끝",
    ".\n",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One engine step: the text it frees ("" while bytes are held back) and its token id."""

    text: str
    token_id: int


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: its steps, why it ends, and the stop string that ended it."""

    steps: tuple[Step, ...]
    finish_reason: str
    stop_reason: str | None

    @property
    def text(self) -> str:
        return "".join(step.text for step in self.steps)


@dataclass(slots=True)
class Script:
    """What one engine answers and how it fails. Mutable: faults change while it runs.

    `length` tokens are made, repeating `tokens`; None means `tokens` once. Delays are seconds; each
    answer that is being made already makes both longer by the share `crowding`.
    `numbered` puts a mark before each repetition, made of a number drawn from the prompt and of the
    count of repetitions: different prompts get different answers, and no two places of one answer
    look the same, so a lost or doubled piece of any length shows. Such an answer is continued from
    ids alone, not from text.
    `shape`: what a chat's deltas hold, "text", "tool" (one call of `f`, whose arguments are the text)
    or "thought" (half of the text, the other half as content); a request with `tool_choice: "required"`
    always gets a call. `begins_at`: an answer that no
    request forces begins with this token of `tokens`, so that it is another one than other engines
    give. `forces_ids`: the ids in a request's `vllm_xargs.kd_ids` begin the answer.
    Counts in `die_after`, `hang_after` and `error_after` are tokens of one answer.
    """

    model: str = "demo"
    tokens: Sequence[Token] = KOREAN_TOKENS
    length: int | None = None
    context_length: int = 16384
    first_delay: float = 0.0
    token_delay: float = 0.0
    crowding: float = 0.0
    numbered: bool = False
    shape: str = "text"
    begins_at: int = 0
    forces_ids: bool = True
    api_key: str | None = None
    pooling: bool = False  # it makes embeddings and no text
    # Faults.
    fail_status: int | None = None  # generation answers this HTTP status
    health_status: int = 200
    refuse_canary: bool = False  # requests for a single token answer 503
    die_after: int | None = None  # drop the connection
    hang_after: int | None = None  # make no further token, keep the connection
    error_after: int | None = None  # an error event inside the stream, then [DONE]
    error_code: int = 500  # the HTTP status that this error names
    abort_after: int | None = None  # the stream ends with the reason "abort", as vLLM's at SIGTERM
    load: int | None = None  # what /load claims; None: the truth

    @property
    def size(self) -> int:
        """Tokens of an undisturbed answer."""
        return len(self.tokens) if self.length is None else self.length

    @property
    def text(self) -> str:
        """The undisturbed answer."""
        return self.answer(self.size).text

    def answer(
        self,
        max_tokens: int,
        stop: Sequence[str] = (),
        start: int = 0,
        prompt: Sequence[int] = (),
    ) -> Answer:
        """The answer from token `start` on, at most `max_tokens` long, cut before a `stop`.

        `prompt` are the ids of the question, without any of the answer's: they number its marks.
        """
        seed = zlib.crc32(repr(list(prompt)).encode()) % SEEDS if self.numbered else None
        return _answer(tuple(self.tokens), self.size, max_tokens, tuple(stop), start, seed)

    def resume_point(self, prompt: Sequence[int]) -> int:
        """How many tokens of the answer are already at the end of a prompt given as ids."""
        count = 0
        while count < len(prompt) and prompt[-1 - count] >= FIRST_ID:
            count += 1
        return count

    def resume_point_in_text(self, prompt: str) -> int:
        """The same for a prompt given as text: the longest beginning of the answer it ends on."""
        if self.numbered:
            return 0
        return _resume_point_in_text(tuple(self.tokens), self.size, prompt)

    def encode(self, text: str) -> list[int]:
        """Prompt ids: UTF-8 bytes."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of prompt ids and answer ids."""
        return b"".join(self.piece(token_id) for token_id in ids).decode(errors="replace")

    def piece(self, token_id: int) -> bytes:
        """The bytes of one token."""
        if token_id >= MARK_ID:
            return _mark(*divmod(token_id - MARK_ID, MARKS))
        if token_id >= FIRST_ID:
            return _bytes(self.tokens[(token_id - FIRST_ID) % len(self.tokens)])
        return bytes([token_id]) if token_id < EOS_ID else b""


@dataclass(slots=True)
class Seen:
    """One request the engine saw. Header names know no case. `outcome`: running, finished, aborted, died or refused."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    tokens: int = 0
    outcome: str = "running"


class ScriptedError(Exception):
    """The script asked for an error in the middle of an answer."""


def chat_prompt(body: Mapping[str, Any]) -> str:
    """A chat as the one text that a scripted engine reads."""
    turns = "".join(f"<|{m['role']}|>\n{_text(m['content'])}\n" for m in body["messages"])
    if body.get("continue_final_message"):
        return turns[:-1]
    return turns + "<|assistant|>\n" if body.get("add_generation_prompt", True) else turns


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _bytes(token: Token) -> bytes:
    return token.encode() if isinstance(token, str) else token


def _mark(seed: int, which: int) -> bytes:
    return f" [{seed}.{which}] ".encode()


def _token(tokens: tuple[Token, ...], index: int, seed: int | None) -> tuple[bytes, int]:
    """Bytes and id of the answer's token `index`."""
    if seed is None:
        place = index % len(tokens)
        return _bytes(tokens[place]), FIRST_ID + place
    which, place = divmod(index, len(tokens) + 1)
    if place == 0:
        return _mark(seed, which), MARK_ID + seed * MARKS + which
    return _bytes(tokens[place - 1]), FIRST_ID + place - 1


@functools.lru_cache(maxsize=64)
def _steps(
    tokens: tuple[Token, ...], size: int, start: int, seed: int | None = None
) -> tuple[Step, ...]:
    """Steps `start` to `size`, holding back bytes that are not yet a character."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    # A resumed answer owes the character that its first half is already in the prompt.
    for index in range(start):
        decoder.decode(_token(tokens, index, seed)[0])
    steps = []
    for index in range(start, size):
        piece, token_id = _token(tokens, index, seed)
        steps.append(Step(decoder.decode(piece), token_id))
    return tuple(steps)


@functools.lru_cache(maxsize=256)
def _answer(
    tokens: tuple[Token, ...],
    size: int,
    max_tokens: int,
    stop: tuple[str, ...],
    start: int,
    seed: int | None,
) -> Answer:
    steps = _steps(tokens, min(size, start + max(0, max_tokens)), start, seed)
    text = "".join(step.text for step in steps)
    cuts = [(text.index(word), word) for word in stop if word and word in text]
    if cuts:
        return _cut(steps, *min(cuts))
    if len(steps) == max_tokens:
        return Answer(steps, "length", None)
    return Answer((*steps, Step("", EOS_ID)), "stop", None)


def _cut(steps: tuple[Step, ...], end: int, word: str) -> Answer:
    """The answer up to character `end`; it stops at the step that completes the stop string."""
    kept: list[Step] = []
    freed = 0
    for step in steps:
        kept.append(Step(step.text[: max(0, end - freed)], step.token_id))
        freed += len(step.text)
        if freed >= end + len(word):
            break
    return Answer(tuple(kept), "stop", word)


@functools.lru_cache(maxsize=256)
def _resume_point_in_text(tokens: tuple[Token, ...], size: int, prompt: str) -> int:
    best, text = 0, ""
    for count, step in enumerate(_steps(tokens, size, 0), start=1):
        text += step.text
        if step.text and prompt.endswith(text):
            best = count
    return best
