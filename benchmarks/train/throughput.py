"""Tokens a second of training: `kodolly train` beside the study's padded way and plain TRL, on the same rows.

    python -m benchmarks.train.throughput [--rows 400] [--rounds 2]

The same small GPT-NeoX, tuned in full, 8 rows an update; only real tokens count, never padding. Every way is a process of
its own, and the ways take turns. `padded`: every row filled up to 512 tokens, as the study's script does it. `trl`: TRL's
defaults, which fill up to the longest row of a batch. `kodolly`: packed, loss on learned tokens' logits alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.train import base

LENGTH = 512  # tokens a row, the study's
BATCH = 8
RESULTS = Path(__file__).with_name("results")


def padded(model: Path, rows: Path) -> tuple[int, float]:
    """(real tokens, seconds) with every row filled up to LENGTH; longer rows are dropped, as the study does."""
    from transformers import default_data_collator

    sequences = [s for s in _sequences(model, rows) if len(s["input_ids"]) < LENGTH]
    end = 0
    filled = [
        {
            "input_ids": s["input_ids"] + [end] * (LENGTH - len(s["input_ids"])),
            "attention_mask": [1] * len(s["input_ids"]) + [0] * (LENGTH - len(s["input_ids"])),
            "labels": s["labels"] + [-100] * (LENGTH - len(s["labels"])),
        }
        for s in sequences
    ]
    seconds = _transformers(model, filled, default_data_collator)
    return sum(len(s["input_ids"]) for s in sequences), seconds


def trl(model: Path, rows: Path) -> tuple[int, float]:
    """(real tokens, seconds) with TRL's own preparation and defaults."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from kodolly_templates import get_template

    template, pairs = get_template("dolly-ko"), []
    for line in rows.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        asked: list[dict[str, Any]] = [
            {"role": "user", "content": row["instruction"], "context": row["context"]}
        ]
        prompt = template.prompt(asked)
        whole = template.training([*asked, {"role": "assistant", "content": row["response"]}]).text
        pairs.append({"prompt": prompt, "completion": whole[len(prompt) :]})
    with tempfile.TemporaryDirectory() as out:
        args = SFTConfig(
            output_dir=out, per_device_train_batch_size=BATCH, num_train_epochs=1, max_length=LENGTH,
            learning_rate=1e-4, bf16=False, use_cpu=True, report_to=[], save_strategy="no",
            gradient_checkpointing=False, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=args,
            train_dataset=Dataset.from_list(pairs),
            processing_class=AutoTokenizer.from_pretrained(model),
        )
        tokens = sum(map(len, trainer.train_dataset["input_ids"]))
        started = time.perf_counter()
        trainer.train()
        return tokens, time.perf_counter() - started


def kodolly(model: Path, rows: Path) -> tuple[int, float]:
    """(real tokens, seconds) of `kodolly train`; its sequences hold several rows, so an update holds as many tokens."""
    from kodolly_adapters.train.recipe import Recipe
    from kodolly_adapters.train.run import train

    lengths = [len(s["input_ids"]) for s in _sequences(model, rows)]
    a_sequence = max(1, round(LENGTH / statistics.mean(lengths)))  # rows
    recipe = Recipe.model_validate(
        {
            "name": "throughput",
            "base": str(model),
            "method": "full",
            "data": {"train": [str(rows)], "validation_share": 0.0, "max_length": LENGTH},
            "train": {
                "epochs": 1, "learning_rate": 1e-4, "batch_size": max(1, BATCH // a_sequence),
                "accumulation": 1, "gradient_checkpointing": False, "report_to": [],
                "save_steps": 1_000_000,  # the other ways save nothing
            },
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as out:
        found = train(recipe, Path(out) / "run")
    return int(found["tokens"]), float(found["train_seconds"])


WAYS: dict[str, Callable[[Path, Path], tuple[int, float]]] = {
    "padded": padded,
    "trl": trl,
    "kodolly": kodolly,
}


def _sequences(model: Path, rows: Path) -> list[dict[str, list[int]]]:
    """The rows' ids and labels, as `kodolly train` makes them."""
    from transformers import AutoTokenizer

    from kodolly_adapters.train.dataset import prepare
    from kodolly_adapters.train.recipe import Recipe
    from kodolly_templates import get_template

    recipe = Recipe.model_validate(
        {
            "name": "throughput",
            "base": str(model),
            "data": {"train": [str(rows)], "validation_share": 0.0, "max_length": 2048},
        }
    )
    words = AutoTokenizer.from_pretrained(model)
    with tempfile.TemporaryDirectory() as cache:
        prepared = prepare(recipe, words, get_template("dolly-ko"), Path(cache))
        return list(prepared.train.select_columns(["input_ids", "labels"]))


def _transformers(model: Path, sequences: list[dict[str, Any]], collator: Any) -> float:
    """Seconds of a plain Trainer."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(
            output_dir=out, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=1e-4,
            use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        trainer = Trainer(
            model=AutoModelForCausalLM.from_pretrained(model),
            args=args,
            train_dataset=Dataset.from_list(sequences),
            data_collator=collator,
        )
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.way:
        tokens, seconds = WAYS[chosen.way](chosen.place / "model", chosen.place / "rows.jsonl")
        sys.stdout.write(json.dumps({"tokens": tokens, "seconds": seconds}) + "\n")
        return 0
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        rates = _measured(Path(scratch), chosen.rows, chosen.rounds)
    text = _report(rates, chosen.rows, load)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "throughput.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


def _measured(place: Path, count: int, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of every way, by round."""
    made = base.rows(count)
    base.write_rows(place / "rows.jsonl", made)
    base.make(place / "model", [text for row in made for text in row.values()])
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.train.throughput", "--way", way]
            done = subprocess.run(
                [*command, "--place", str(place)],
                capture_output=True, text=True, check=False, timeout=1200,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"},
            )  # fmt: skip
            if done.returncode:
                raise RuntimeError(f"{way}: {done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            rates[way].append(found["tokens"] / found["seconds"])
            sys.stderr.write(f"{way}: {found['tokens']:,} tokens in {found['seconds']:.1f} s\n")
    return rates


def _report(rates: dict[str, list[float]], count: int, load: float) -> str:
    ours = statistics.median(rates["kodolly"])
    lines = [
        "# Training throughput in real tokens",
        "",
        f"{count} rows, {len(rates['kodolly'])} rounds, a GPT-NeoX of 6 layers and 256 dimensions on the CPU; medians.",
        f"{datetime.now(UTC).isoformat(timespec='minutes')}, {os.cpu_count()} cores, {platform.machine()}, load {load:.1f} at the start.",
        "",
        "| way | tokens/s | of each round | kodolly beside it |",
        "|---|---:|---|---:|",
    ]
    for way, found in rates.items():
        rate = statistics.median(found)
        rounds = ", ".join(f"{one:,.0f}" for one in found)
        lines.append(f"| {way} | {rate:,.0f} | {rounds} | {ours / rate:.2f} x |")
    padded_rate = statistics.median(rates["padded"])
    verdict = "pass" if ours >= 2 * padded_rate else "FAIL"
    lines += [
        "",
        f"Target: at least 2 x the padded way: {ours / padded_rate:.2f} x, {verdict}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
