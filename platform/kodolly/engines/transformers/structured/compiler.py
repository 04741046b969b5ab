"""Makes grammars of what clients ask for: on a thread of its own, within bounds, and each one once."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kodolly.engines.transformers.structured.constraint import Constraint, literal
from kodolly.engines.transformers.structured.matcher import Matcher
from kodolly.errors import BadRequest, NoWorker

MAX_TEXT = 2**17  # characters of a grammar, schemas of tools together
MAX_RULES = 2**14  # of a grammar that is the client's own: its rules can cost the most
MAX_KEPT = 32  # grammars that are kept for later requests
# llguidance recurses along chains of rules and of $ref: with the usual 8 MiB a chain of 1,000 ends the
# process. This is address space, of which only what is used becomes memory.
STACK = 2**29
# What a grammar may cost; llguidance's own names. Its defaults allow seconds for one of them.
LIMITS: dict[str, Any] = {
    "max_grammar_size": 200_000,
    "max_items_in_row": 2_500,
    "step_max_items": 10_000,
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 50_000,
    "max_lexer_states": 50_000,
    "verbose_errors": False,
}
PLACE = re.compile(r"^at \d+\(\d+\): ")
EXCERPT = re.compile(r"^\s*\d+ \| ")


class Grammar:
    """A compiled grammar, which many answers can follow at once."""

    def __init__(self, compiled: Any, size: int) -> None:
        self._compiled = compiled
        self._size = size

    def matcher(self) -> Matcher:
        """A new answer's place in it: the beginning."""
        return Matcher(self._compiled, self._size)


class GrammarCompiler:
    """The thread, and the grammars that were used last."""

    def __init__(self, tokenizer: Any, size: int, *, most: int) -> None:
        """`tokenizer`: an llguidance.LLTokenizer of `size` tokens. `most`: requests at once."""
        self._tokenizer = tokenizer
        self._size = size
        self._most = most
        self._requests = 0
        self._kept: OrderedDict[Constraint, Grammar] = OrderedDict()
        with _stack_size(STACK):
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
            self._thread.submit(int).result()  # the thread begins now, with this stack

    async def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of a constraint.

        Raises BadRequest, which names the field, for one that is none or costs too much; NoWorker when
        too many requests wait for theirs.
        """
        if (grammar := self._kept.get(constraint)) is not None:
            self._kept.move_to_end(constraint)
            return grammar
        most = MAX_RULES if constraint.notation == "grammar" else MAX_TEXT
        if len(constraint.text) > most:
            raise _refusal(constraint, f"has more than {most} characters")
        if self._requests >= self._most:
            raise NoWorker(
                f"the engine is full: it compiles {self._requests} grammars already",
                headers={"Retry-After": "1"},
            )
        self._requests += 1
        try:
            loop = asyncio.get_running_loop()
            grammar = await loop.run_in_executor(self._thread, self._made, constraint)
        finally:
            self._requests -= 1
        self._kept[constraint] = grammar
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return grammar

    def _made(self, constraint: Constraint) -> Grammar:
        """Runs on the thread."""
        from llguidance import LLMatcher, LLParserLimits

        if (
            grammar := self._kept.get(constraint)
        ) is not None:  # made for a request before this one
            return grammar
        try:
            text = _llguidance_text(constraint, self._rules(constraint.marks))
        except Exception as error:  # the reader of GBNF raises what it likes
            reason = str(error).partition("\n")[0][:300] or type(error).__name__
            raise _refusal(constraint, f"is no grammar: {reason}") from error
        limits = LLParserLimits(**LIMITS)
        compiled = LLMatcher(self._tokenizer, text, log_level=0, limits=limits)
        if compiled.is_error():
            raise _refusal(constraint, f"cannot be used: {_reason(compiled.get_error())}")
        return Grammar(compiled, self._size)

    def _rules(self, marks: tuple[tuple[str, str], ...]) -> str:
        """The rules of a constraint's marks: llguidance reads a mark that is one token by its bare name."""
        rules = ""
        for name, mark in marks:
            ids = self._tokenizer.tokenize_str(mark, parse_special=True)
            is_token = len(ids) == 1 and self._tokenizer.is_special_token(ids[0])
            rules += f"\n{name}: {mark if is_token else literal(mark)}"
        return rules


def llguidance_tokenizer(tokenizer: Any, size: int, ends: list[int]) -> Any:
    """An LLTokenizer for a tokenizer of transformers. `ends`: token ids that end an answer.

    It takes a second or so, in which no other thread of Python runs. Raises ValueError for a tokenizer
    that has no tokenizer.json.
    """
    from llguidance.hf import from_tokenizer

    return from_tokenizer(tokenizer, n_vocab=size, eos_token=ends)


def _llguidance_text(constraint: Constraint, rules: str) -> str:
    from llguidance import LLMatcher, grammar_from

    if constraint.notation == "regex":
        return str(LLMatcher.grammar_from_regex(constraint.text))
    if constraint.notation == "grammar":
        return str(grammar_from("grammar", constraint.text))
    return str(LLMatcher.grammar_from_lark(constraint.text + rules))


def _reason(error: str) -> str:
    """llguidance's reason in one line, without the place in our own text."""
    lines = []
    for line in PLACE.sub("", error).splitlines():
        if EXCERPT.match(line):
            break
        if line.strip(" ^"):
            lines.append(line.strip())
    return " ".join(lines)[:300]


def _refusal(constraint: Constraint, reason: str) -> BadRequest:
    field = constraint.field.partition(".")[0]
    return BadRequest(f"{constraint.field}: {reason}", param=field)


@contextlib.contextmanager
def _stack_size(size: int) -> Iterator[None]:
    """Threads that begin in this context have a stack of `size` bytes."""
    before = threading.stack_size(size)
    try:
        yield
    finally:
        threading.stack_size(before)
