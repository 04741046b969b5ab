"""Preparation of training rows: ours beside TRL's own, on the same rows, in turns in one process.

    python -m benchmarks.train.prepare [--rows 8000] [--rounds 3] [--json FILE] [--without-words]

TRL is given texts that are rendered already, no length limit and no packing: its two passes over tokens
(tokenize, labels) and nothing else. Ours is the whole of `prepare()`: read, render, tokenize, mask, count,
write. The ids and labels of both are compared, row by row. CPU seconds are of all threads.

Made-up Korean repeats its words more often than people do, which flatters the memory of words
(kodolly_adapters.train.words); --without-words leaves it out, and so gives the lower bound.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from types import SimpleNamespace
from typing import Any

import orjson

from benchmarks.convert.rows import Conversations
from kodolly_adapters.train.prepare import prepare
from kodolly_adapters.train.recipe import Recipe
from kodolly_adapters.train.words import Words
from kodolly_templates import get_template

STUDY_ROWS = 923_590
VOCABULARY = 30_000  # Polyglot-Ko's size
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


def run(count: int, rounds: int, scratch: Path) -> dict[str, Any]:
    """Both, in turns, `rounds` times; the medians."""
    import datasets

    datasets.disable_caching()
    datasets.disable_progress_bars()
    rows = make_rows(count)
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
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "trl": []}
    tokens = 0
    for number in range(rounds):
        cache = scratch / f"cache{number}"
        ours, *spent = timed(partial(prepare, recipe, tokenizer, template, cache))
        seconds["ours"].append((spent[0], spent[1]))
        theirs, *spent = timed(partial(with_trl, texts, tokenizer, scratch))
        seconds["trl"].append((spent[0], spent[1]))
        tokens = same(ours.train, theirs)
    return {"rows": count, "tokens": tokens, "rounds": rounds, **rates(count, tokens, seconds)}


def split(template: Any, row: dict[str, str], eos: str) -> tuple[str, str]:
    """The row's prompt and completion as texts."""
    asked = {"role": "user", "content": row["instruction"], "context": row["context"]}
    training = template.training([asked, {"role": "assistant", "content": row["response"]}], eos)
    start = training.spans[0][0]
    return training.text[:start], training.text[start:]


def rates(count: int, tokens: int, seconds: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Rows a CPU second and a second, the ratio, and minutes for the study's rows."""
    result: dict[str, Any] = {}
    for name, spent in seconds.items():
        cpu, wall = (median(column) for column in zip(*spent, strict=True))
        result[name] = {
            "rows_per_cpu_second": round(count / cpu, 1),
            "tokens_per_cpu_second": round(tokens / cpu),
            "rows_per_second": round(count / wall, 1),
            "study_cpu_minutes": round(STUDY_ROWS * cpu / count / 60, 1),
        }
    ours, trl = (result[name]["rows_per_cpu_second"] for name in ("ours", "trl"))
    return {**result, "ratio": round(ours / trl, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-words", action="store_true", help="every word anew")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if options.without_words:
        Words.of = staticmethod(lambda *_: None)  # type: ignore[assignment, method-assign]
    with tempfile.TemporaryDirectory(prefix="prepare-") as scratch:
        figures = run(options.rows, options.rounds, Path(scratch))
    text = json.dumps(figures, indent=2)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(
        f"identical ids and labels on {figures['rows']:,} rows; ours makes "
        f"{figures['ratio']} times TRL's rows a CPU second",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
