"""vLLM begins an answer with the tokens that a request names: how it is told to, and the processor.

vLLM itself is not here: stand-ins take the place of the two classes that the processor derives from.
`tests/e2e/test_vllm.py` tries it inside the real one.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kodolly.engines.forced_ids import PLUGINS, forcing, forcing_env

OURS = ("--logits-processors", "kodolly_forced_ids:ForcedIds")


@pytest.mark.parametrize(
    ("given", "flags", "rest"),
    [
        ((), OURS, ()),
        (("--logits-processors", "a:B", "c:D"), (*OURS, "a:B", "c:D"), ()),
        (("--logits_processors=a:B", "--seed", "1"), (*OURS, "a:B"), ("--seed", "1")),
        (
            ("-O3", "--logits-processors", "a:B", "--seed", "1"),
            (*OURS, "a:B"),
            ("-O3", "--seed", "1"),
        ),
    ],
)
def test_an_operators_own_processors_are_loaded_too(
    given: tuple[str, ...], flags: tuple[str, ...], rest: tuple[str, ...]
) -> None:
    """vLLM reads the last such flag only, so all stand in one."""
    assert forcing(given).flags == flags
    assert forcing(given).extra_args == rest


@pytest.mark.parametrize(
    "given",
    [
        ("--speculative-config", "{}"),
        ("--speculative_config.method=ngram",),
        ("-sc", "{}"),
        ("--spec-tokens", "3"),
        ("--runner", "pooling"),
        ("--runner=pooling",),
        ("--config", "vllm.yaml"),
        ("--nnodes", "2"),
        ("--distributed-executor-backend", "ray"),
    ],
)
def test_where_vllm_would_not_start_it_is_not_loaded(
    given: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """The operator's flags stay as they are, and the log says what this engine cannot do."""
    caplog.set_level("INFO")
    assert forcing(given).flags == ()
    assert forcing(given).extra_args == given
    assert "no logits processor of ours is loaded, since" in caplog.text


@pytest.mark.parametrize(
    "given", [("--specialize-active-lora",), ("--config-format", "hf"), ("--runner", "generate")]
)
def test_flags_that_look_alike_do_no_harm(given: tuple[str, ...]) -> None:
    """Only the flags that vLLM cannot have beside a processor keep ours away."""
    assert forcing(given).flags == OURS


def test_the_engine_finds_the_file() -> None:
    """Its folder comes first, and what the operator's environment names stays."""
    assert forcing_env({})["PYTHONPATH"] == str(PLUGINS)
    assert forcing_env({"PYTHONPATH": "/mine"})["PYTHONPATH"] == f"{PLUGINS}:/mine"


@dataclass
class Params:
    """vLLM's sampling parameters, as far as the processor reads them."""

    extra_args: dict[str, Any] | None = None


@dataclass
class Update:
    """A change of the first runner's batch."""

    added: list[tuple[int, Params, list[int], list[int]]] = field(default_factory=list)


def process_dict_updates(
    rows: dict[int, Any], update: Update | None, state: Callable[..., Any]
) -> None:
    """vLLM's helper, as far as requests are added."""
    for row, params, prompt, made in update.added if update else ():
        new = state(params, prompt, made)
        rows.pop(row, None)
        if new is not None:
            rows[row] = new


@pytest.fixture(params=["both runners", "the first runner only"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class, loaded as vLLM loads it."""
    modules: dict[str, dict[str, Any]] = {
        "vllm.v1.sample.logits_processor": {"LogitsProcessor": type("First", (), {})},
        "vllm.v1.sample.logits_processor.builtin": {"process_dict_updates": process_dict_updates},
    }
    if request.param == "both runners":
        second = {"LogitsProcessor": type("Second", (), {})}
        modules["vllm.v1.worker.gpu.sample.logits_processor"] = second
    for name, values in modules.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, ModuleType(path))
        vars(sys.modules[name]).update(values)
    spec = importlib.util.spec_from_file_location("forced", PLUGINS / "kodolly_forced_ids.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ForcedIds


def chosen(logits: np.ndarray) -> list[int]:
    """The likeliest token of each row."""
    return [int(each) for each in logits.argmax(axis=-1)]


def fresh() -> np.ndarray:
    """Three rows of five logits; the model would say 4."""
    return np.tile(np.arange(5.0), (3, 1))


def test_first_runner(processor: Any) -> None:
    """Each row is forced up to the end of its ids, by the length of its own answer."""
    made: list[int] = []
    forced = processor(None, "cpu", False)
    forced.update_state(
        Update([(1, Params({"kd_ids": [2, 0]}), [9], made), (2, Params(), [9], [])])
    )
    assert chosen(forced.apply(fresh())) == [4, 2, 4]
    made.append(2)
    forced.update_state(None)
    assert chosen(forced.apply(fresh())) == [4, 0, 4]
    made.append(0)
    assert chosen(forced.apply(fresh())) == [4, 4, 4]
    assert not forced.is_argmax_invariant()


def test_second_runner(processor: Any) -> None:
    """Rows change from step to step: a slot's prompt and the length so far give the position."""
    states = SimpleNamespace(prompt_len=SimpleNamespace(np=np.array([0, 7, 0, 3])))
    forced = processor(None, states)
    assert forced.add_request(1, Params({"kd_ids": [2, 0]}))
    assert not forced.add_request(3, Params())

    def step(slots: list[int], lengths: list[int]) -> list[int]:
        context = SimpleNamespace(
            idx_mapping_np=np.array(slots), seq_lens_upper_bound_np=np.array(lengths)
        )
        return chosen(forced.apply(fresh(), context))

    assert step([3, 1], [3, 5]) == [4, 4, 4]  # a part of the prompt is still to be read
    assert step([1, 3], [7, 4]) == [2, 4, 4]
    assert step([3, 1], [5, 8]) == [4, 0, 4]
    assert step([1, 3], [9, 6]) == [4, 4, 4]
    assert not forced.add_request(1, Params())  # another request takes the slot
    assert step([1, 3], [7, 7]) == [4, 4, 4]


@pytest.mark.parametrize("ids", ["12", [1, "2"], [-1], [1.5], [True]])
def test_what_are_no_ids_is_refused(processor: Any, ids: Any) -> None:
    """A list of anything else would break the engine for everybody: it is a 400."""
    with pytest.raises(ValueError, match="kd_ids must be a list of token ids"):
        processor.validate_params(Params({"kd_ids": ids}))
    processor.validate_params(Params({"kd_ids": [1, 2]}))
    processor.validate_params(Params())


def test_an_id_beyond_the_vocabulary_is_not_forced(processor: Any) -> None:
    """The engine stays whole; the API sees that another token came."""
    forced = processor(None, "cpu", False)
    forced.update_state(Update([(0, Params({"kd_ids": [99]}), [9], [])]))
    assert chosen(forced.apply(fresh())) == [4, 4, 4]
