"""Drawing a token: bounds, penalties and seeds."""

import time

import pytest
import torch

from kodolly.engines.transformers.sampling import SamplingParams, adjust, draw

LOGITS = torch.tensor([0.0, 3.0, 2.0, 1.0, -4.0])


def drawn(params: SamplingParams, logits: torch.Tensor = LOGITS, times: int = 200) -> set[int]:
    generator = torch.Generator().manual_seed(1)
    return {draw(logits, params, generator) for _ in range(times)}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(1, temperature=0), {1}),
        (SamplingParams(1, top_k=2), {1, 2}),
        (SamplingParams(1, top_p=0.01), {1}),
        (SamplingParams(1, top_p=0.7), {1, 2}),
        (SamplingParams(1, min_p=0.3), {1, 2}),
        (SamplingParams(1, temperature=2), {0, 1, 2, 3, 4}),
    ],
)
def test_only_allowed_tokens_are_drawn(params: SamplingParams, expected: set[int]) -> None:
    """Every token that the bounds allow comes up, and no other."""
    assert drawn(params) == expected


def test_the_shortlist_draws_as_the_whole_does() -> None:
    """With a large vocabulary, top_p keeps the tokens that sorting everything would keep."""
    logits = torch.full((5000,), -20.0)
    logits[[7, 4000]] = torch.tensor([1.0, 0.5])
    assert drawn(SamplingParams(1, top_p=0.9), logits) == {7, 4000}
    flat = torch.zeros(5000)  # top_p needs more tokens than the shortlist has
    assert len(drawn(SamplingParams(1, top_p=0.9), flat, times=3000)) > 512


def test_penalties_follow_what_was_said() -> None:
    """Repetition looks at prompt and answer, presence and frequency at the answer alone."""
    params = SamplingParams(1, repetition_penalty=2.0, presence_penalty=0.5, frequency_penalty=0.25)
    after = adjust(LOGITS, params, prompt=[1, 4], output=[2, 2])
    assert after.tolist() == [0.0, 1.5, 1.0 - 0.5 - 0.5, 1.0, -8.0]
    assert LOGITS.tolist() == [0.0, 3.0, 2.0, 1.0, -4.0]


def test_bias_and_forbidden_tokens() -> None:
    """logit_bias moves a token; a forbidden one is never drawn."""
    params = SamplingParams(1, temperature=0, logit_bias={0: 10.0})
    assert draw(adjust(LOGITS, params, [], []), params, None) == 0
    assert draw(adjust(LOGITS, params, [], [], torch.tensor([0])), params, None) == 1


def test_a_bias_for_every_token_does_not_slow_the_batch() -> None:
    """All answers wait for each other's tokens, so no request's values may take long to apply."""
    size = 20_000
    logits = torch.zeros(size)

    def quickest(params: SamplingParams) -> float:
        times = []
        for _ in range(8):
            begin = time.perf_counter()
            adjusted = adjust(logits, params, [1], [2])
            times.append(time.perf_counter() - begin)
        assert adjusted[size - 1] == params.logit_bias.get(size - 1, 0.0)
        return min(times)

    biased = SamplingParams(1, logit_bias={token: token / size for token in range(size)})
    assert quickest(biased) < 20 * quickest(SamplingParams(1, presence_penalty=0.1))
