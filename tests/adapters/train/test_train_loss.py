"""The loss that is trained: of learned tokens only, the same packed or not, whole or in pieces, and on several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.processes import free_port
from support.tiny_runs import MAKERS, losses_of, toy
from transformers import AutoModelForCausalLM

from kodolly_adapters.train.callbacks import Stop
from kodolly_adapters.train.recipe import Recipe
from kodolly_adapters.train.run import Run, make_trainer, train
from kodolly_adapters.train.trainer import arguments

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("no_curve")]

RATE = 0.1  # of SGD: weights before a step less those after it, divided by this, are the gradient
Sequences = Sequence[dict[str, list[int]]]


def opened(recipe: Recipe, out: Path) -> Any:
    """A run's trainer before its first step."""
    run = Run(recipe, out)
    args = arguments(recipe, run.schedule, run.precision, run.hardware, out / "checkpoints")
    return make_trainer(run, args, out, Stop(), show=False)


def plain_loss(model: Any, sequences: Sequences) -> torch.Tensor:
    """The slow, obvious way: each sequence alone, the mean over all learned tokens."""
    total, count = torch.zeros(()), 0
    for sequence in sequences:
        ids, labels = (torch.tensor([sequence[key]]) for key in ("input_ids", "labels"))
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        learned = labels[0, 1:] != -100
        loss = torch.nn.functional.cross_entropy(logits[learned], labels[0, 1:][learned])
        total = total + loss * learned.sum()
        count += int(learned.sum())
    return total / count


@pytest.mark.parametrize("family", list(MAKERS))
@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_has_the_loss_and_gradients_of_its_sequences(
    place: Path, rows: str, tmp_path: Path, family: str, packing: bool
) -> None:
    """Packed or padded, in one pass: what each sequence alone gives, to float noise."""
    recipe = toy(
        place / family, rows, method="full", data__packing=packing, data__max_length=1024,
        train__batch_size=2,
    )  # fmt: skip
    trainer = opened(recipe, tmp_path)
    model = trainer.model.train()
    batch = [trainer.train_dataset[i] for i in range(2)]
    if packing:
        assert len(batch[0]["seq_lengths"]) > 1
    sequences = [part for item in batch for part in parts(item)]
    inputs = trainer.data_collator([dict(item) for item in batch])
    found = trainer.compute_loss(model, dict(inputs))
    found.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = plain_loss(model, sequences)
    expected.backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_held_out_loss_is_a_mean_over_tokens(place: Path, rows: str, tmp_path: Path) -> None:
    """Not over batches, in which few and many tokens would weigh the same."""
    recipe = toy(place / "neox", rows, data__packing=False, train__batch_size=1, method="full")
    trainer = opened(recipe, tmp_path)
    found = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        expected = plain_loss(trainer.model, list(trainer.eval_dataset))
    assert found == pytest.approx(float(expected), abs=1e-5)


def parts(item: dict[str, list[int]]) -> Sequences:
    """The sequences of a packed one; the first token of each is never a label there."""
    found, start = [], 0
    for length in item.get("seq_lengths", [len(item["input_ids"])]):
        found.append({key: item[key][start : start + length] for key in ("input_ids", "labels")})
        start += length
    return found


def test_pieces_of_a_step_give_the_step(place: Path, rows: str, tmp_path: Path) -> None:
    """Long packed sequences are computed a few at a time: loss and weights of an SGD step are those of all at once."""
    values: dict[str, Any] = {
        "method": "full", "data__max_length": 1024, "data__repeat": 3, "data__validation": [],
        "data__validation_share": 0, "train__max_steps": 1, "train__learning_rate": RATE,
        "train__optimizer": "sgd", "train__scheduler": "constant", "train__max_grad_norm": 1e9,
    }  # fmt: skip
    packed = Run(toy(place / "neox", rows, **values), tmp_path / "cache").train
    train(toy(place / "neox", rows, **values, train__batch_size=len(packed)), tmp_path / "run")

    schedule = json.loads((tmp_path / "run/run.json").read_text())["schedule"]
    assert schedule["batch"] < len(packed) == schedule["batch"] * schedule["accumulation"]
    base, trained = (
        AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.float32)
        for path in (place / "neox", tmp_path / "run/model")
    )
    expected = plain_loss(base, [part for item in packed for part in parts(item)])
    expected.backward()
    assert losses_of(tmp_path / "run") == pytest.approx([float(expected.detach())], abs=1e-4)
    stepped = dict(trained.named_parameters())
    for name, parameter in base.named_parameters():
        gradient = (parameter - stepped[name]).detach() / RATE
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-3)


def test_two_processes_train_as_one(place: Path, rows: str, tmp_path: Path) -> None:
    """torchrun with two processes: the losses and weights of one with twice the batch, written once."""
    values: dict[str, Any] = {
        "method": "full", "train__max_steps": 2, "train__learning_rate": 1e-4, "train__eval_steps": 2
    }  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    train(toy(place / "neox", rows, **values), one)
    values |= {"train__batch_size": 2, "distributed__strategy": "ddp"}
    recipe = toy(place / "neox", rows, **values)
    file = tmp_path / "recipe.toml"
    file.write_text(as_toml(recipe), encoding="utf-8")
    argv = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
        *("--master-port", str(free_port()), "-m", "kodolly_adapters.train"),
        *(str(file), "--out", str(two)),
    ]
    done = subprocess.run(
        argv, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{two}\n"
    assert done.stderr.count("kodolly train: 2 steps") == 1
    for key in ("loss", "eval_loss"):
        assert losses_of(one, key) == pytest.approx(losses_of(two, key), abs=1e-4)
    ours, theirs = (load_file(out / "model/model.safetensors") for out in (one, two))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=2e-4, rtol=0)


def as_toml(recipe: Recipe) -> str:
    """A recipe as a file: TOML reads JSON's strings, numbers and lists."""
    lines, tables = [], []
    for key, value in recipe.model_dump(mode="json", exclude_none=True).items():
        if isinstance(value, dict):
            inner = [f"{name} = {json.dumps(item)}" for name, item in value.items()]
            tables += [f"[{key}]", *inner]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join([*lines, *tables])


def test_a_tied_head_follows_its_rows(rows: str, tmp_path: Path) -> None:
    """Where output and input share one matrix, new rows are trained once and serve both."""
    base = MAKERS["llama"](tmp_path / "base")
    config = json.loads((base / "config.json").read_text()) | {"tie_word_embeddings": True}
    (base / "config.json").write_text(json.dumps(config))
    recipe = toy(
        base, rows, template="dolly-v2-special", train__max_steps=2, train__eval_steps=1,
        lora__dora=True, lora__rslora=True,
    )  # fmt: skip
    train(recipe, tmp_path / "run")
    tensors = load_file(tmp_path / "run/adapter/adapter_model.safetensors")
    rows_trained = [name for name in tensors if "trainable_tokens_delta" in name]
    assert len(rows_trained) == 1
    assert "embed_tokens" in rows_trained[0]
    assert any("lora_magnitude_vector" in name for name in tensors)
    first, last = (
        load_file(tmp_path / f"run/checkpoints/checkpoint-{step}/adapter_model.safetensors")
        for step in (1, 2)
    )
    assert (first[rows_trained[0]] - last[rows_trained[0]]).abs().amax(dim=1).min() > 1e-5


def test_asking_for_the_end_keeps_the_work(place: Path, rows: str, tmp_path: Path) -> None:
    """Ctrl-C ends the run after its step with a checkpoint there, from which it goes on to the same losses."""
    recipe = toy(place / "llama", rows, train__max_steps=12, train__eval_steps=12)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a late Ctrl-C must not end pytest
    try:
        with ThreadPoolExecutor() as pool:
            pool.submit(press_ctrl_c_after_a_step, stopped)
            with pytest.raises(KeyboardInterrupt, match=r"after step \d+, with a") as caught:
                train(recipe, stopped)
    finally:
        signal.signal(signal.SIGINT, before)
    step = int(str(caught.value).split()[3].rstrip(","))
    assert 0 < step < 12
    assert (stopped / f"checkpoints/checkpoint-{step}").is_dir()
    train(recipe, stopped)
    train(recipe, whole)
    assert losses_of(stopped) == pytest.approx(losses_of(whole), abs=1e-6)


def press_ctrl_c_after_a_step(out: Path) -> None:
    """Send SIGINT to this process once metrics.jsonl has its first line, within a minute."""
    for _ in range(30_000):
        if (out / "metrics.jsonl").is_file() and (out / "metrics.jsonl").stat().st_size:
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.002)
