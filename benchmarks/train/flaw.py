"""The study's flaw and its cure: special keys under LoRA, with their new rows left frozen and with them trained.

    PYTHONPATH=examples/kodolly-ko-8m python -m benchmarks.train.flaw [--steps 120]

The small Korean GPT-NeoX of examples/kodolly-ko-8m is tuned by the same LoRA (the study's: r 8, the fused attention
alone) on the same rows, in the same number of updates. Only the keys differ: the study's way adds the three keys of
dolly-v2 to the vocabulary, and LoRA leaves their random rows as they are; ours trains these rows, or needs none.
WAYS says what each line of the table is.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.train import base
from benchmarks.train.judge import DRAWN, MOST, TOP_P, Outcome, Row, Writer, judged

LORA: dict[str, Any] = {"r": 8, "alpha": 16, "dropout": 0.05, "targets": ["query_key_value"]}
RATE = 2e-3
BATCH = 4
LENGTH = 256
SPECIAL = "dolly-v2-special"
NEW = 3  # tokens of it
DEVIATION = 0.02  # of a new row's numbers, transformers' own
AGAIN = "{}, loaded again"
WAYS = {
    "study": "three new tokens, their rows drawn at random (deviation 0.02) and frozen by LoRA",
    "study, longer rows": "the same with rows as long as the known ones: the last norm bounds the hidden state, so "
    "that a short output row can never be likely, and in a small model least of all",
    AGAIN.format(
        "..."
    ): "the new rows drawn once more, as where the adapter alone was saved and the base resized anew",
    "kodolly, special keys": "the same tokens, their rows trained and saved with the adapter",
    "kodolly, keys as text": "dolly-v2, the same words as ordinary text; this base has read next to no English, and "
    "LoRA cannot teach it the letters either",
    "kodolly, Korean keys": "dolly-ko, the default: words the base knows, and its own end token",
}
RESULTS = Path(__file__).with_name("results")


class Bench:
    """One base, its rows, and every way to tune it."""

    def __init__(self, place: Path, steps: int) -> None:
        from kodolly_ko import EXAMPLE
        from kodolly_ko.corpus import is_held_out, own_rows

        self._place = place
        self._steps = steps
        self._base = EXAMPLE / "base"
        rows = [row for row in own_rows() if not row["context"]]
        self._rows = [row for row in rows if not is_held_out(row)]
        self.held = [row for row in rows if is_held_out(row)]
        self._file = base.write_rows(place / "rows.jsonl", self._rows)

    def ours(self, way: str, template: str) -> Outcome:
        """`kodolly train`, then `kodolly merge`."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from kodolly_adapters.merge.cli import main as merge
        from kodolly_adapters.train.recipe import Recipe
        from kodolly_adapters.train.run import train

        out, merged = self._place / template, self._place / f"{template}-merged"
        train(Recipe.model_validate(self._recipe(template)), out)
        paths = [str(self._base), str(out / "adapter"), "--out", str(merged)]
        if merge([*paths, "--no-verify", "--quiet"]) != 0:
            raise RuntimeError(f"{template}: not merged")
        net = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
        return self._judged(way, net, AutoTokenizer.from_pretrained(merged), template)

    def study(self, way: str, *, longer: bool) -> list[Outcome]:
        """Keys added, embeddings resized, LoRA around it; then the same with the new rows drawn once more."""
        net, tokenizer = self._study(longer=longer)
        found = [self._judged(way, net, tokenizer, SPECIAL)]
        _draw(net, longer=longer, seed=7)
        return [*found, self._judged(AGAIN.format(way), net, tokenizer, SPECIAL)]

    def _study(self, *, longer: bool) -> tuple[Any, Any]:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

        from kodolly_templates import get_template

        set_seed(42)
        template = get_template(SPECIAL)
        tokenizer = AutoTokenizer.from_pretrained(self._base)
        tokenizer.add_special_tokens({"additional_special_tokens": list(template.special_tokens)})
        net = AutoModelForCausalLM.from_pretrained(self._base, dtype=torch.float32)
        net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        _draw(net, longer=longer, seed=1)
        config = LoraConfig(
            r=LORA["r"], lora_alpha=LORA["alpha"], lora_dropout=LORA["dropout"],
            target_modules=LORA["targets"], task_type="CAUSAL_LM",
        )  # fmt: skip
        wrapped = get_peft_model(net, config)
        self._fit(wrapped, tokenizer, Writer(tokenizer, template))
        return wrapped.eval(), tokenizer

    def _fit(self, net: Any, tokenizer: Any, writer: Writer) -> None:
        from datasets import Dataset
        from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

        made = [writer.encode(row) for row in self._rows]
        rows = [{"input_ids": m.ids, "labels": m.labels} for m in made if len(m.ids) < LENGTH]
        args = TrainingArguments(
            output_dir=str(self._place / "study"), per_device_train_batch_size=BATCH,
            max_steps=self._steps, learning_rate=RATE, lr_scheduler_type="cosine",
            warmup_steps=round(0.03 * self._steps), use_cpu=True, report_to=[], save_strategy="no",
            disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        Trainer(
            model=net, args=args, train_dataset=Dataset.from_list(rows),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        ).train()  # fmt: skip

    def _recipe(self, template: str) -> dict[str, Any]:
        return {
            "name": template,
            "base": str(self._base),
            "template": template,
            "data": {
                "train": [str(self._file)], "max_length": LENGTH, "packing": False,
                "validation_share": 0.0,
            },
            "lora": LORA,
            "train": {
                "max_steps": self._steps, "learning_rate": RATE, "batch_size": BATCH, "accumulation": 1,
                "save_steps": self._steps, "gradient_checkpointing": False, "report_to": [],
            },
        }  # fmt: skip

    def _judged(self, way: str, net: Any, tokenizer: Any, template: str) -> Outcome:
        from kodolly_templates import get_template

        found = judged(way, net, tokenizer, get_template(template), self.held)
        sys.stderr.write(f"{found}\n")
        return found


def _draw(net: Any, *, longer: bool, seed: int) -> None:
    """Draw the rows of the new tokens, the last ones, in the input and the output embeddings."""
    import torch

    for shift, layer in enumerate([net.get_input_embeddings(), net.get_output_embeddings()]):
        rows = layer.weight
        source = torch.Generator().manual_seed(seed + shift)
        drawn = DEVIATION * torch.randn(NEW, rows.shape[1], generator=source)
        if longer:
            drawn *= rows[:-NEW].norm(dim=1).mean() / drawn.norm(dim=1, keepdim=True)
        with torch.no_grad():
            rows[-NEW:] = drawn


def main() -> int:
    """Run the benchmark by the command line's flags; returns the exit status."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=120, help="updates of every tuning")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(1)  # so small a model gains nothing from more, and loses on shared cores
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), chosen.steps)
        found = [
            *bench.study("study", longer=False),
            *bench.study("study, longer rows", longer=True),
            bench.ours("kodolly, special keys", SPECIAL),
            bench.ours("kodolly, keys as text", "dolly-v2"),
            bench.ours("kodolly, Korean keys", "dolly-ko"),
        ]
        held = bench.held
    text = _report(found, held, chosen.steps, time.process_time(), load)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "flaw.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


def _report(
    found: Sequence[Outcome], held: Sequence[Row], steps: int, seconds: float, load: float
) -> str:
    when = datetime.now(UTC).isoformat(timespec="minutes")
    lines = [
        "# Special keys under LoRA: rows left random, rows trained, and keys that are plain text",
        "",
        f"KoDolly's Korean base (GPT-NeoX), {steps} updates of {BATCH} rows, LoRA r {LORA['r']} on query_key_value,",
        f"rate {RATE}. {len(held)} rows held out; drawn answers: {DRAWN} a row, top-p {TOP_P}, at most {MOST} tokens.",
        f"{when}, {os.cpu_count()} cores, {platform.machine()}, load {load:.1f} at the start, {seconds:.0f} CPU s in all.",
        "",
        "| way | answer, nats a token | whole end, nats | end token, nats | greedy answers that end | drawn answers that end |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {one.way} | {one.answer:.3f} | {one.ending:.3f} | {one.last:.3f} | {one.greedy:.0%} | {one.drawn:.0%} |"
        for one in found
    ]
    lines += ["", *(f"- {way}: {meaning}." for way, meaning in WAYS.items())]
    lines += ["", "The first greedy answer of each:", ""]
    lines += [f"- {one.way}: `{one.sample!r}`" for one in found]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
