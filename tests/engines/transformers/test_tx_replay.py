"""A repeated request may begin with the tokens that its client already has."""

import dataclasses
from pathlib import Path

import pytest

from kodolly.engines.transformers.model import Model, ModelOptions, load
from kodolly.engines.transformers.requests.base import check
from kodolly.engines.transformers.requests.completion import CompletionRequest
from kodolly.engines.transformers.sampling import SamplingParams
from kodolly.engines.transformers.scheduler import Scheduler
from kodolly.engines.transformers.sequence import Sequence
from kodolly.errors import BadRequest

SAMPLED = SamplingParams(max_tokens=24, seed=3, presence_penalty=1.0, repetition_penalty=1.3)
PROMPT = [5, 300, 400, 17]


def answer(model: Model, params: SamplingParams) -> list[int]:
    scheduler = Scheduler(model, slots=2, max_waiting=2)
    sequence = Sequence("test", PROMPT, params, str, frozenset(), lambda _: None)
    scheduler.submit([sequence])
    while not sequence.output or scheduler.running:
        scheduler.step()
    return sequence.output


@pytest.mark.parametrize("greedy", [True, False])
def test_an_answer_goes_on_as_it_did(llama: Path, greedy: bool) -> None:
    """With its first tokens given back, a seeded or greedy answer has the same ones after them."""
    model = load(ModelOptions(llama, max_num_seqs=2, dtype="float32", threads=1))
    params = dataclasses.replace(SAMPLED, temperature=0) if greedy else SAMPLED
    whole = answer(model, params)
    for count in (1, 10, 24):
        again = dataclasses.replace(params, forced=tuple(whole[:count]))
        assert answer(model, again) == whole


def test_the_given_tokens_come_whatever_the_model_says(llama: Path) -> None:
    """Tokens that the model would not have drawn begin the answer, and the limit counts them."""
    model = load(ModelOptions(llama, max_num_seqs=2, dtype="float32", threads=1))
    forced = (1, 2, 3, 4, 5)
    assert tuple(answer(model, dataclasses.replace(SAMPLED, forced=forced))[:5]) == forced
    short = dataclasses.replace(SAMPLED, forced=forced, max_tokens=3)
    assert answer(model, short) == [1, 2, 3]


@pytest.mark.parametrize("value", [{"kd_ids": [900]}, {"kd_ids": "a"}, {"kd_ids": [-1]}, {"a": 1}])
def test_what_is_no_token_is_refused(value: object) -> None:
    """As is any other extra argument."""
    with pytest.raises(BadRequest, match="vllm_xargs"):
        check(CompletionRequest, {"prompt": "a", "vllm_xargs": value}).params(9, {}, 900)
