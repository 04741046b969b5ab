"""What one request does to the arithmetic of drawing stays that request's own."""

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.apps import serving
from support.poison import honest_calls_survive
from support.processes import eventually

from kodolly.api.app import create_app as create_api
from kodolly.controller.app import Controller
from kodolly.controller.app import create_app as create_controller
from kodolly.controller.dispatch import Dispatcher
from kodolly.controller.registry import Registry
from kodolly.engines.transformers.model import ModelOptions, load
from kodolly.engines.transformers.sampling import SamplingParams, adjust, draw
from kodolly.engines.transformers.scheduler import Scheduler
from kodolly.engines.transformers.sequence import Delta, Sequence
from kodolly.protocol.wire import Extension, Registration, WorkerStatus
from kodolly.settings import ApiSettings

from .conftest import NAME, Start, healths_until_ready

VOCABULARY = 640


@pytest.fixture
async def api(start: Start, llama: Path) -> AsyncIterator[str]:
    """The API before two engines of the tiny LLaMA, told of them by a real controller."""
    engines = [start(llama, key="secret") for _ in range(2)]
    for each in engines:
        healths_until_ready(each)
    controller = Controller(Registry(90, 3), Dispatcher("shortest_queue"), None)
    for each in engines:
        extension = Extension(
            engine_url=each.url,
            engine_key="secret",
            heart_beat_interval=600,
            context_length=512,
        )
        controller.registry.register(
            Registration(worker_name=each.url, kodolly=extension), WorkerStatus(model_names=[NAME])
        )
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(serving(create_controller(controller)))
        app = create_api(ApiSettings(controller=address))
        url = await stack.enter_async_context(serving(app))

        async def both_are_there() -> bool:
            return len(app.state.table.ready(NAME)) == 2

        await eventually(both_are_there)
        yield url
        suspects = [w.row.name for w in app.state.table.all() if w.suspect_until > 0]
        assert not suspects, "a request's own fault was held against a worker"
        controller.stopping.set()


async def test_honest_calls_do_not_notice_poison_beside_them(api: str) -> None:
    """Eight honest calls beside eighteen poison ones on two engines: not one differs or fails."""
    await honest_calls_survive(api, NAME, VOCABULARY)


@given(
    logits=st.lists(st.floats(width=32), min_size=8, max_size=8),
    temperature=st.sampled_from([0.0, 1e-5, 1.0, 2.0]),
    top_p=st.floats(5e-324, 1.0),
    min_p=st.floats(0.0, 1.0),
    top_k=st.sampled_from([0, 1, 3, 2**31]),
    penalty=st.floats(5e-324, 1.7e308),
    forbidden=st.sets(st.integers(0, 7), max_size=7),
)
def test_any_values_draw_a_token_that_may_be_drawn(
    logits: list[float], forbidden: set[int], penalty: float, **values: Any
) -> None:
    """Whatever a model's numbers and a request's values are, a token comes out, and none forbidden."""
    params = SamplingParams(
        max_tokens=1, repetition_penalty=penalty, logit_bias={1: 100.0}, **values
    )
    adjusted = adjust(
        torch.tensor(logits),
        params,
        [0, 1, 2],
        [3, 3],
        torch.tensor([*forbidden], dtype=torch.long),
    )
    assert not any(map(math.isnan, adjusted.tolist()))
    assert draw(adjusted, params, torch.Generator().manual_seed(1)) in set(range(8)) - forbidden


def test_a_row_whose_drawing_fails_ends_alone(llama: Path) -> None:
    """Of three answers one cannot be drawn: it ends as its own fault, the others whole."""

    class Broken(Sequence):
        def choose(self, logits: Any) -> int:
            if len(self.output) == 2:
                raise ArithmeticError("no such share")
            return super().choose(logits)

    scheduler = Scheduler(load(ModelOptions(llama, max_num_seqs=3, threads=1)), 3, 8)
    deltas: list[list[Delta]] = [[], [], []]
    params = SamplingParams(max_tokens=8, temperature=0)
    kinds = (Sequence, Broken, Sequence)
    answers = [
        kind(str(i), [5, 300 + i], params, lambda ids: "x" * len(ids), frozenset(), sink.append)
        for i, (kind, sink) in enumerate(zip(kinds, deltas, strict=True))
    ]
    scheduler.submit(answers)
    scheduler.close()
    scheduler.run()
    assert [each[-1].finish_reason for each in deltas] == ["length", "fault", "length"]
    assert [len(each.output) for each in answers] == [8, 2, 8]
    assert scheduler.running == 0
