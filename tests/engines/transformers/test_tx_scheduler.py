"""The scheduler with real tiny models: batching changes no greedy token, and nobody starves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kodolly.engines.transformers import scheduler as scheduling
from kodolly.engines.transformers.model import Model, ModelOptions, load
from kodolly.engines.transformers.sampling import SamplingParams
from kodolly.engines.transformers.scheduler import Scheduler
from kodolly.engines.transformers.sequence import Delta, Sequence
from kodolly.errors import NoWorker

GREEDY = SamplingParams(max_tokens=24, temperature=0)
PROMPTS = [[5, 300 + i, 400, 17] * (1 + i * 3) for i in range(6)]

Generate = Callable[[Path, list[int], int], list[int]]


def model_of(directory: Path, slots: int = 4) -> Model:
    return load(ModelOptions(directory, max_num_seqs=slots, dtype="float32", threads=1))


def sequence(
    prompt: list[int], params: SamplingParams = GREEDY, deltas: list[Delta] | None = None
) -> Sequence:
    sink = [] if deltas is None else deltas
    return Sequence("test", prompt, params, lambda ids: "x" * len(ids), frozenset(), sink.append)


def finish(scheduler: Scheduler) -> None:
    for _ in range(2000):
        if not scheduler.running and not scheduler.waiting:
            return
        scheduler.step()
    raise AssertionError("the scheduler does not come to an end")


@pytest.mark.parametrize("kind", ["neox", "llama"])
def test_greedy_tokens_equal_generate_in_any_company(
    kind: str, request: pytest.FixtureRequest, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six prompts of 4 to 64 tokens over three rows, joining and leaving, read in chunks of 7:
    each answer is what transformers' generate makes alone, token for token."""
    monkeypatch.setattr(scheduling, "CHUNK", 7)
    directory: Path = request.getfixturevalue(kind)
    scheduler = Scheduler(model_of(directory, 3), slots=3, max_waiting=8)
    lengths = [24, 5, 17, 9, 24, 1]
    made = [
        sequence(prompt, SamplingParams(max_tokens=length, temperature=0))
        for prompt, length in zip(PROMPTS, lengths, strict=True)
    ]
    for each in made:
        scheduler.submit([each])
        scheduler.step()  # staggered: each joins while the others go on
    finish(scheduler)
    for each, length in zip(made, lengths, strict=True):
        assert each.output == generate(directory, each.prompt, length)


def test_the_cache_grows_without_changing_tokens(llama: Path, generate: Generate) -> None:
    """An answer that crosses the cache's first size is still the one generate makes."""
    scheduler = Scheduler(model_of(llama), slots=4, max_waiting=8)
    long = sequence([5, 300, 17], SamplingParams(max_tokens=300, temperature=0))
    scheduler.submit([long, sequence(PROMPTS[1])])
    finish(scheduler)
    assert long.output == generate(llama, long.prompt, 300)


def test_a_long_prompt_starves_nobody(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a long prompt is read, an answer goes on token by token, and a short prompt that
    came after it gets its first token before it."""
    monkeypatch.setattr(scheduling, "CHUNK", 8)
    scheduler = Scheduler(model_of(llama), slots=4, max_waiting=8)
    going = sequence([5, 6], SamplingParams(max_tokens=100, temperature=0))
    scheduler.submit([going])
    scheduler.step()
    long, short = sequence([7] * 200), sequence([8] * 4)
    scheduler.submit([long])
    scheduler.step()
    scheduler.submit([short])
    before = len(going.output)
    for step in range(1, 11):
        scheduler.step()
        assert len(going.output) == before + step
    assert short.output
    assert not long.output
    finish(scheduler)
    assert len(long.output) == 24


def test_an_aborted_row_is_free_at_the_next_step(llama: Path) -> None:
    """A running and a waiting request are dropped; the next in line takes the row."""
    scheduler = Scheduler(model_of(llama, 1), slots=1, max_waiting=8)
    ends: list[Delta] = []
    running, waiting, last = sequence(PROMPTS[0], deltas=ends), sequence([5]), sequence([9, 9])
    scheduler.submit([running, waiting, last])
    scheduler.step()
    assert (scheduler.running, scheduler.waiting) == (1, 2)
    scheduler.abort([running, waiting])
    assert scheduler.running == 0
    scheduler.step()
    assert ends[-1].finish_reason == "abort"
    assert (scheduler.running, scheduler.waiting, scheduler.aborted_total) == (1, 0, 2)
    assert last.output


def test_too_many_waiting_are_refused(llama: Path) -> None:
    """Beyond free rows and the waiting bound a request is refused as a whole."""
    scheduler = Scheduler(model_of(llama, 1), slots=1, max_waiting=1)
    scheduler.submit([sequence([5]), sequence([6])])
    with pytest.raises(NoWorker):
        scheduler.submit([sequence([7])])
    assert scheduler.waiting == 2


def test_a_failing_forward_ends_its_requests_only(llama: Path) -> None:
    """A step that raises ends the running answers with an error; the next request is served."""
    model = model_of(llama)
    scheduler = Scheduler(model, slots=4, max_waiting=8)
    ends: list[Delta] = []
    broken = sequence([10**9], deltas=ends)  # no such row in the embedding: the forward raises
    scheduler.submit([broken])
    scheduler.close()
    scheduler.run()
    assert ends[-1].finish_reason == "error"
    healthy = Scheduler(model, slots=4, max_waiting=8)
    healthy.submit([again := sequence(PROMPTS[0])])
    finish(healthy)
    assert len(again.output) == 24


def test_a_seed_gives_the_same_answer_in_any_company(llama: Path) -> None:
    """Sampled with a seed, alone or beside others, an answer is the same; another seed differs."""

    def sampled(seed: int, company: int) -> list[int]:
        scheduler = Scheduler(model_of(llama), slots=4, max_waiting=8)
        mine = sequence([5, 300, 17], SamplingParams(max_tokens=16, seed=seed))
        scheduler.submit([sequence(PROMPTS[i]) for i in range(company)] + [mine])
        finish(scheduler)
        return mine.output

    assert sampled(1, 0) == sampled(1, 3)
    assert sampled(1, 0) != sampled(2, 0)


def test_min_tokens_keeps_the_end_away(llama: Path) -> None:
    """An end token is not drawn before min_tokens, and ends the answer after them."""
    model = model_of(llama)

    def ended(min_tokens: int) -> list[int]:
        scheduler = Scheduler(model, slots=4, max_waiting=8)
        params = SamplingParams(
            max_tokens=24,
            temperature=0,
            stop_token_ids=frozenset(range(3, 640)),
            min_tokens=min_tokens,
        )
        scheduler.submit([mine := sequence([5, 300, 17], params)])
        finish(scheduler)
        return mine.output

    assert len(ended(0)) == 1
    assert len(ended(6)) == 7


def test_memory_is_given_back_when_idle(llama: Path) -> None:
    """With no request left the cache holds no block."""
    model = model_of(llama)
    scheduler = Scheduler(model, slots=4, max_waiting=8)
    scheduler.submit([sequence(PROMPTS[0])])
    scheduler.step()
    assert model.cache.capacity > 0
    finish(scheduler)
    assert model.cache.capacity == 0
    assert torch.get_num_threads() == 1
