"""The affinity benchmark's engine keeps blocks as vLLM does, and its runs can be repeated."""

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Benchmark:
    """The benchmark's modules, and what these tests make of them."""

    def __init__(self) -> None:
        self.chats, self.engine, self.simulate = (
            importlib.import_module(f"benchmarks.affinity.{name}")
            for name in ("chats", "engine", "simulate")
        )

    def message(self, number: int, tokens: int) -> Any:
        """A message known by its number."""
        return self.chats.Message(number, "user", tokens)

    def request(self, *messages: Any, answer: int = 20) -> Any:
        """A turn whose answer is message 999."""
        prompt, tokens = self.engine.block_hashes(messages)
        whole, _ = self.engine.block_hashes([*messages, self.message(999, answer)])
        return self.engine.Request(prompt, tokens, whole, answer, 0.0, lambda: None)

    def served(self, cache: Any, *messages: Any) -> int:
        """Tokens of a turn that were cached, when it is served from start to end."""
        turn = self.request(*messages)
        assert cache.take(turn)
        cache.give_back(turn)
        return int(turn.hit)

    def run(self, policy: str, *, workers: int = 4, blocks: int = 8000) -> tuple[float, float]:
        """The cached-token rate and the worst load of a short run."""
        setup = self.simulate.Setup(policy, policy, workers=workers)
        habits = self.chats.Habits(rate=1.0, seconds=60.0)
        size = self.engine.Size(blocks)
        outcome = self.simulate.Simulation(setup, habits, size, 3).run()
        return outcome.cached, outcome.busy_worst


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """benchmarks/ is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return Benchmark()


def test_whole_blocks_are_shared_but_never_the_whole_prompt(bench: Benchmark) -> None:
    """Of 100 tokens asked again 96 are found; of 96 only 80, for one token must be computed."""
    cache = bench.engine.PrefixCache(100)
    for tokens, found in ((100, 96), (96, 80)):
        assert [bench.served(cache, bench.message(tokens, tokens)) for _ in range(2)] == [0, found]


def test_an_answer_is_part_of_the_next_prompt(bench: Benchmark) -> None:
    """The next turn finds its question's and its answer's whole blocks."""
    cache, question = bench.engine.PrefixCache(100), bench.message(1, 100)
    bench.served(cache, question)
    assert bench.served(cache, question, bench.message(999, 20), bench.message(2, 30)) == 112


def test_another_beginning_shares_nothing(bench: Benchmark) -> None:
    """A block is known by all that is before it."""
    cache, question = bench.engine.PrefixCache(100), bench.message(1, 100)
    bench.served(cache, bench.message(5, 16), question)
    assert bench.served(cache, bench.message(6, 16), question) == 0


def test_what_was_unused_longest_goes_first_and_its_end_before_its_beginning(
    bench: Benchmark,
) -> None:
    """With room for two prompts a third pushes the tail of the first out."""
    cache = bench.engine.PrefixCache(2 * 8 + 2)
    first, second, third = (bench.message(n, 100) for n in (1, 2, 3))
    for message in (first, second, third):
        bench.served(cache, message)
    assert bench.served(cache, third) == 96
    assert 0 < bench.served(cache, first) < 96


def test_a_full_cache_makes_requests_wait(bench: Benchmark) -> None:
    """What runs is never pushed out; the next is let in when it has ended."""
    engine = bench.engine.Engine("e", bench.engine.Size(blocks=10))
    turns = [bench.request(bench.message(n, 100), answer=10) for n in (1, 2)]
    engine.waiting.extend(turns)
    ended: list[Any] = []
    while engine.load:
        ended += engine.step(0.0)[1]
        assert len(engine.running) <= 1
    assert ended == turns


def test_a_run_can_be_repeated_and_affinity_is_seen(bench: Benchmark) -> None:
    """The same people come each time; chats that stay find much more than chats that wander."""
    rate, worst = bench.run("affinity")
    assert (rate, worst) == bench.run("affinity")
    ideal, _ = bench.run("round_robin", workers=1, blocks=32_000)
    assert rate > 0.9 * ideal > 1.2 * bench.run("round_robin")[0]
    assert worst < 1.25
