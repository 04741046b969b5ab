"""The check's greedy answers: a model that answers otherwise does not pass, ties within rounding do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.merge_cases import VARIANTS, make_adapter, verdict

from kodolly_adapters.errors import OutputError
from kodolly_adapters.merge import greedy
from kodolly_adapters.merge.greedy import Answers, available_memory, compare_answers, judge_answers
from kodolly_adapters.merge.plan import make_plan
from kodolly_adapters.merge.run import merge

pytestmark = pytest.mark.filterwarnings("ignore")

Bases = dict[tuple[str, bool], Path]


@pytest.mark.parametrize("kind", ["dora", "tokens", "new_tokens", "head_only", "embedding"])
@pytest.mark.parametrize(("arch", "tied"), [("neox", False), ("llama", True)])
def test_every_kind_of_adapter_passes(
    arch: str, tied: bool, kind: str, bases: Bases, tmp_path: Path
) -> None:
    """Every tensor's rows and every greedy token of base + adapter and of the merged model are equal."""
    base, out = bases[arch, tied], tmp_path / "out"
    make_adapter(tmp_path / "adapter", base, arch, VARIANTS[kind], tied=tied)
    merge(base, tmp_path / "adapter", out, check=False, quiet=True)

    answer = verdict(base, tmp_path / "adapter", out)

    assert answer.tokens + answer.ties == len(greedy.PROMPTS) * greedy.NEW_TOKENS
    assert answer.rows > 0
    assert answer.logits < 0.01


def test_a_model_that_answers_otherwise_does_not_pass(bases: Bases, tmp_path: Path) -> None:
    """The base in the place of the merged model is noticed by its answers."""
    base = bases["llama", False]
    make_adapter(tmp_path, base, "llama", VARIANTS["lora"], tied=False)

    with pytest.raises(OutputError, match=r"greedy answers|the logits differ"):
        compare_answers(make_plan(base, tmp_path), base)


def test_a_model_that_does_not_fit_into_memory_is_not_loaded(bases: Bases, tmp_path: Path) -> None:
    """No answers are compared then, and the verdict says why."""
    base = bases["neox", False]
    make_adapter(tmp_path, base, "neox", VARIANTS["lora"], tied=False)
    plan = make_plan(base, tmp_path)
    first = plan.outputs[0]
    huge = replace(first, target=replace(first.target, shape=(1 << 22, 1 << 20)))

    reason = compare_answers(replace(plan, outputs=[huge]), base)["skipped"]

    assert "the model needs 17,592.2 GB of memory" in reason
    assert "GB are free" in reason


def test_tokens_may_differ_only_at_a_tie() -> None:
    """Logits within rounding do not excuse another token where the best two lie apart."""
    import torch

    logits = torch.tensor([[[0.0, 3.0, 1.0], [2.0, 2.001, -1.0]]])  # one prompt, two tokens
    read = Answers(logits.argmax(-1), logits)
    near = logits + torch.tensor([0.001, 0.0, 0.0])

    tie = judge_answers(Answers(torch.tensor([[1, 0]]), near), read, "F32")

    assert (tie["tokens"], tie["ties"]) == (1, 1)
    with pytest.raises(OutputError, match="prompt 0 part after 0 tokens"):
        judge_answers(Answers(torch.tensor([[2, 1]]), near), read, "F32")


def test_free_memory_is_the_machines_or_the_containers(tmp_path: Path) -> None:
    """A container's limit counts where there is one; files in its cache can be dropped."""
    meminfo, group = tmp_path / "meminfo", tmp_path / "cgroup"
    assert available_memory(meminfo, group) == 0
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\n")
    assert available_memory(meminfo, group) == 5000 * 1024
    group.mkdir()
    (group / "memory.current").write_text("3000\n")
    (group / "memory.stat").write_text("anon 100\nfile 2000\n")
    (group / "memory.max").write_text("max\n")
    assert available_memory(meminfo, group) == 5000 * 1024
    (group / "memory.max").write_text("4000\n")
    assert available_memory(meminfo, group) == 3000
