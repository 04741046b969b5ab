"""The check's greedy answers: the same from disk as from memory, and a wrong weight shows in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.merge_cases import VARIANTS, make_adapter

from kodolly_adapters.merge import greedy, streamed
from kodolly_adapters.merge.plan import Plan, plan
from kodolly_adapters.merge.run import merge
from kodolly_adapters.merge.verify_child import Differs
from kodolly_adapters.safetensors_io import Reader

pytestmark = pytest.mark.filterwarnings("ignore")

Bases = dict[tuple[str, bool], Path]
KINDS = ("lora", "dora", "tokens", "new_tokens", "resized_tokens", "head_only", "embedding")


def merged(bases: Bases, arch: str, tied: bool, kind: str, place: Path) -> tuple[Plan, Path]:
    """A merge of one kind of adapter, and its plan."""
    base, out = bases[arch, tied], place / "out"
    make_adapter(place / "adapter", base, arch, VARIANTS[kind], tied=tied)
    merge(base, place / "adapter", out, check=False, quiet=True)
    return plan(base, place / "adapter"), out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("arch", "tied"), [("neox", False), ("llama", True)])
def test_a_model_on_disk_answers_as_in_memory(
    arch: str, tied: bool, kind: str, bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the adapter does: the same tokens, ties and logits as from transformers' own loader."""
    known, out = merged(bases, arch, tied, kind, tmp_path)
    whole = greedy.compare(known, out)
    monkeypatch.setattr(greedy, "WHOLE", 0)
    monkeypatch.setattr(streamed, "PIECE", 1_000)
    monkeypatch.setattr(greedy, "_load", None)  # nothing is loaded whole

    found = greedy.compare(known, out)

    assert found["tokens"] + found["ties"] == len(greedy.PROMPTS) * greedy.NEW
    assert (found["tokens"], found["ties"]) == (whole["tokens"], whole["ties"])
    assert found["logits"] == pytest.approx(whole["logits"], rel=0.05)


def test_a_model_on_disk_is_never_whole_in_memory(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No read of the streamed check is longer than a piece and a row."""
    known, out = merged(bases, "neox", False, "lora", tmp_path)
    monkeypatch.setattr(greedy, "WHOLE", 0)
    monkeypatch.setattr(streamed, "PIECE", 1_000)
    read: list[int] = []
    rows = Reader.rows

    def counted(self: Reader, *args: Any) -> Any:
        found = rows(self, *args)
        read.append(found.numel())
        return found

    monkeypatch.setattr(Reader, "rows", counted)

    greedy.compare(known, out)

    largest = max(known.outputs, key=lambda output: output.rows * output.width)
    assert max(read) <= 1_000 + largest.width < largest.rows * largest.width


@pytest.mark.parametrize("whole", [0, greedy.WHOLE])
def test_a_model_that_answers_otherwise_does_not_pass(
    whole: int, bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base in the place of the merged model is found out by its answers, on disk and in memory."""
    known, _ = merged(bases, "llama", False, "lora", tmp_path)
    monkeypatch.setattr(greedy, "WHOLE", whole)

    with pytest.raises(Differs, match=r"greedy answers|the logits differ"):
        greedy.compare(known, bases["llama", False])


def test_tokens_that_part_without_a_tie_are_found(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits within rounding do not excuse another token where the best two lie apart."""
    known, out = merged(bases, "neox", False, "lora", tmp_path)
    chosen = greedy.chosen

    def other(*args: Any) -> Any:
        found = chosen(*args)
        found.tokens[2, 5] += 1
        return found

    monkeypatch.setattr(greedy, "chosen", other)
    with pytest.raises(Differs, match="prompt 2 part after 5 tokens"):
        greedy.compare(known, out)


def test_an_unknown_architecture_that_does_not_fit_is_said(
    bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither streamed nor in memory: no answers are compared, and the verdict says why."""
    known, out = merged(bases, "neox", False, "lora", tmp_path)
    known.config["model_type"] = "mamba"
    monkeypatch.setattr(greedy, "WHOLE", 0)
    monkeypatch.setattr(greedy, "available_memory", lambda: 1_000)

    found = greedy.compare(known, out)

    assert "mamba cannot be streamed" in found["skipped"]
