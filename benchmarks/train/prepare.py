"""Preparation of training rows: ours beside TRL's own, on the same rows, in turns in one process.

    python -m benchmarks.train.prepare [--rows 8000] [--rounds 3] [--data ROWS.jsonl]

TRL is given texts that are rendered already, no length limit and no packing: its two passes over tokens
(tokenize, labels) and nothing else. Ours is the whole of `prepare()`: read, render, tokenize, mask, count,
write. The ids and labels of both are compared, row by row. CPU seconds are of all threads.

--data takes Dolly rows that people wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from types import SimpleNamespace
from typing import Any

import orjson

from benchmarks.convert.rows import Conversations
from kodolly_adapters.train.dataset import prepare
from kodolly_adapters.train.recipe import Recipe
from kodolly_templates import get_template

STUDY_ROWS = 923_590
VOCABULARY = 30_000  # Polyglot-Ko's size
OURS, TRL = "kodolly", "TRL"
TARGET = 2
Spent = dict[str, list[tuple[float, float]]]  # way: (CPU, wall) seconds a round
RESULTS = Path(__file__).with_name("results")
CONTEXT_SHARE = 0.18  # of the study's rows: KorQuAD's; the rest are conversations


def make_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Dolly rows with the lengths of the study's: four of five without a context."""
    random = Random(seed)
    maker = Conversations(random)
    rows = []
    for _ in range(count):
        row = {"instruction": "", "context": "", "response": "", "category": "open_qa"}
        if random.random() < CONTEXT_SHARE:
            sentences = maker.korean.run(min(int(random.lognormvariate(6.17, 0.33)), 2_946))
            row["context"] = " ".join(sentences)
            row["instruction"] = maker.korean.question(34)
            row["response"] = maker.korean.phrase(random.randint(2, 14))
        else:
            while not row["instruction"].strip() or not row["response"].strip():
                row["instruction"], row["response"] = maker.question(), maker.answer("\n")
        rows.append(row)
    return rows


def make_tokenizer(rows: list[dict[str, str]]) -> Any:
    """Byte-level BPE with NFC, as Polyglot-Ko's, trained on the rows."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((text for row in rows for text in row.values()), trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=end, pad_token=end, model_max_length=1 << 20
    )


def with_trl(texts: list[tuple[str, str]], tokenizer: Any, scratch: Path) -> Any:
    """TRL's own dataset of prompts and completions."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    args = SFTConfig(
        output_dir=str(scratch),
        max_length=None,
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=None,
    )
    # The method asks its trainer for no more than this; a model has no part in it.
    trainer = SimpleNamespace(_tokenizer=tokenizer, completion_only_loss=True, chat_template=None)
    rows = Dataset.from_dict(
        {"prompt": [prompt for prompt, _ in texts], "completion": [rest for _, rest in texts]}
    )
    method: Any = SFTTrainer._prepare_dataset
    return method(trainer, rows, tokenizer, args, False, None, "train")


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, CPU seconds, wall seconds)."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def same(ours: Any, theirs: Any) -> int:
    """Tokens compared. Raises SystemExit at the first row that differs."""
    tokens = 0
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one["input_ids"] != other["input_ids"] or one["labels"] != other["labels"]:
            raise SystemExit(f"row {number} differs")
        tokens += one["length"]
    return tokens


def run(rows: list[dict[str, str]], rounds: int, scratch: Path) -> tuple[int, Spent]:
    """(tokens of the rows, seconds of every way), the ways in turns, `rounds` times."""
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    tokenizer = make_tokenizer(rows[:4_000])
    source = scratch / "rows.jsonl"
    source.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    template = get_template("dolly-ko").with_guard(["<|endoftext|>"])
    recipe = Recipe.model_validate(
        {
            "name": "prepare",
            "base": "none",
            "data": {"train": [str(source)], "validation_share": 0, "max_length": 1 << 20},
        }
    )
    texts = [split(template, row, tokenizer.eos_token) for row in rows]
    with_trl(texts[:1], tokenizer, scratch)  # its imports are not its work
    spent: Spent = {OURS: [], TRL: []}
    tokens = 0
    for number in range(rounds):
        ours = partial(prepare, recipe, tokenizer, template)
        made, *seconds = timed(partial(ours, scratch / f"cache{number}"))
        spent[OURS].append((seconds[0], seconds[1]))
        theirs, *seconds = timed(partial(with_trl, texts, tokenizer, scratch))
        spent[TRL].append((seconds[0], seconds[1]))
        tokens = same(made.train, theirs)
    return tokens, spent


def split(template: Any, row: dict[str, str], eos: str) -> tuple[str, str]:
    """The row's prompt and completion as texts."""
    asked = {"role": "user", "content": row["instruction"], "context": row["context"]}
    training = template.training([asked, {"role": "assistant", "content": row["response"]}], eos)
    start = training.spans[0][0]
    return training.text[:start], training.text[start:]


def report(title: str, rows: int, tokens: int, spent: Spent, load: float) -> str:
    """The table in Markdown; CPU seconds are medians over the rounds."""
    cpu = {way: median(cpu for cpu, _ in rounds) for way, rounds in spent.items()}
    lines = [
        f"# Preparation of rows: {title}",
        "",
        f"{rows:,} rows, {tokens:,} tokens, {len(spent[TRL])} rounds in turns; ids and labels of every way are identical.",
        f"{datetime.now(UTC).isoformat(timespec='minutes')}, {os.cpu_count()} cores, {platform.machine()}, load {load:.1f} at the start.",
        "",
        f"| way | rows a CPU second | tokens a CPU second | beside TRL | CPU minutes for {STUDY_ROWS:,} rows |",
        "|---|---:|---:|---:|---:|",
    ]
    for way, seconds in cpu.items():
        study = STUDY_ROWS * seconds / rows / 60
        lines.append(
            f"| {way} | {rows / seconds:,.0f} | {tokens / seconds:,.0f} | {cpu[TRL] / seconds:.2f} x | {study:.1f} |"
        )
    ratio = cpu[TRL] / cpu[OURS]
    verdict = "pass" if ratio >= TARGET else "FAIL"
    return "\n".join(
        [*lines, "", f"Target: at least {TARGET} x TRL's own: {ratio:.2f} x, {verdict}.", ""]
    )


def main() -> int:
    """Run the benchmark by the command line's flags; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=8_000, help="at most so many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="Dolly rows, instead of made-up ones")
    parser.add_argument("--name", default="prepare", help="of the file in --out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    rows = read(chosen.data)[: chosen.rows] if chosen.data else make_rows(chosen.rows)
    title = f"rows of {chosen.data.name}" if chosen.data else "made-up rows of the study's lengths"
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="prepare-") as scratch:
        tokens, spent = run(rows, chosen.rounds, Path(scratch))
    text = report(title, len(rows), tokens, spent, load)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / f"{chosen.name}.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file that say something, their fields alone."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    fields = ("instruction", "context", "response")
    kept = [row for row in rows if row["instruction"].strip() and row["response"].strip()]
    return [{field: row.get(field) or "" for field in fields} for row in kept]


if __name__ == "__main__":
    raise SystemExit(main())
