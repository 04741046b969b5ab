"""The study's flaw and its cure: special keys under LoRA, with their new rows left frozen and with them trained.

    python -m benchmarks.train.flaw [--steps 150]

One small GPT-NeoX, pre-trained here on made-up Korean, is tuned three times by the same LoRA on the same rows, 8 an
update: `study` adds the three keys of dolly-v2 to the vocabulary as the study's script does, and LoRA leaves their
random rows as they are; `kodolly, special keys` trains these rows; `kodolly, plain keys` needs none. Printed are the
held-out loss of answers and of the token that ends them, and how many answers end by themselves.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.convert.korean import Korean, particle
from benchmarks.train import base

LORA: dict[str, Any] = {"r": 8, "alpha": 16, "dropout": 0.05}
RATE = 2e-3
BATCH = 8
HELD_OUT = 40
MOST = 48  # tokens of an answer
RESULTS = Path(__file__).with_name("results")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Held-out figures of one way: nats a token, and the share of answers that end."""

    way: str
    answer_loss: float
    end_loss: float
    stops: float
    sample: str


def lessons(count: int, seed: int) -> list[dict[str, str]]:
    """Rows whose answer takes up a word of the question."""
    random = Random(seed)
    korean = Korean(random, size=2_000)
    made = []
    for _ in range(count):
        noun = korean.noun()
        asked = random.choice(
            ["무엇인지 알려 주세요.", "어떤 것인가요?", "한 문장으로 말해 주세요."]
        )
        made.append(
            {
                "instruction": f"{noun}{particle(noun, '은는')} {asked}",
                "context": "",
                "response": f"{noun}{particle(noun, '은는')} {korean.sentence(5)}",
                "category": "open_qa",
            }
        )
    return made


def pretrained(place: Path, steps: int) -> Path:
    """A base that knows the made-up language: `kodolly train` from random weights."""
    random = Random(3)
    korean = Korean(random, size=2_000)
    text = [" ".join(korean.run(200)) for _ in range(150)]
    (place / "text.txt").write_text("\n\n".join(text), encoding="utf-8")
    empty = base.make(place / "empty", text, hidden=128, layers=4, vocabulary=1_000)
    _train(
        place / "base",
        {
            "name": "base",
            "base": str(empty),
            "method": "full",
            "start": "random",
            "data": {
                "train": [str(place / "text.txt")],
                "format": "text",
                "max_length": 128,
                "validation_share": 0.0,
            },
            "train": {"max_steps": steps, "learning_rate": 2e-3, "batch_size": BATCH},
        },
    )
    return place / "base" / "model"


def _train(out: Path, recipe: dict[str, Any]) -> None:
    from kodolly_adapters.train.recipe import Recipe
    from kodolly_adapters.train.run import train

    recipe["train"] |= {"accumulation": 1, "gradient_checkpointing": False, "report_to": []}
    train(Recipe.model_validate(recipe), out)


def ours(place: Path, model: Path, rows: Path, template: str, steps: int) -> tuple[Any, Any]:
    """(model, tokenizer) as `kodolly train` leaves them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from kodolly_adapters.merge.cli import main as merge

    out = place / template
    _train(
        out,
        {
            "name": template,
            "base": str(model),
            "template": template,
            "data": _data(rows),
            "lora": LORA,
            "train": {"max_steps": steps, "learning_rate": RATE, "batch_size": BATCH},
        },
    )
    merged = place / f"{template}-merged"
    words = [str(model), str(out / "adapter"), "--out", str(merged), "--no-verify", "--quiet"]
    if merge(words) != 0:
        raise RuntimeError(f"{template}: not merged")
    net = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    return net.eval(), AutoTokenizer.from_pretrained(merged)


def _data(rows: Path) -> dict[str, Any]:
    return {"train": [str(rows)], "max_length": 256, "packing": False, "validation_share": 0.0}


def study(place: Path, model: Path, rows: Path, steps: int) -> tuple[Any, Any]:
    """(model, tokenizer) the study's way: keys added, embeddings resized, LoRA on the linear layers alone."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from kodolly_templates import get_template

    set_seed(42)
    template = get_template("dolly-v2-special")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": list(template.special_tokens)})
    net = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    net.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    targets = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    config = LoraConfig(
        r=LORA["r"], lora_alpha=LORA["alpha"], lora_dropout=LORA["dropout"], target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    wrapped = get_peft_model(net, config)
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    args = TrainingArguments(
        output_dir=str(place / "study"), per_device_train_batch_size=BATCH, max_steps=steps,
        learning_rate=RATE, lr_scheduler_type="cosine", warmup_steps=round(0.03 * steps), use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    Trainer(
        model=wrapped,
        args=args,
        train_dataset=Dataset.from_list([_encoded(tokenizer, template, row) for row in lines]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    ).train()
    return wrapped.eval(), tokenizer


def _encoded(tokenizer: Any, template: Any, row: dict[str, str]) -> dict[str, list[int]]:
    """Ids and labels of one row."""
    messages = [
        {"role": "user", "content": row["instruction"]},
        {"role": "assistant", "content": row["response"]},
    ]
    end = "" if template.special_tokens else tokenizer.eos_token
    ids, learned = template.training(messages, end).encode(tokenizer)
    labels = [token if told else -100 for token, told in zip(ids, learned, strict=True)]
    return {"input_ids": ids, "labels": labels}


def judged(
    way: str, net: Any, tokenizer: Any, template_name: str, rows: Sequence[dict[str, str]]
) -> Outcome:
    """Held-out losses and stops of a tuned model."""
    import torch

    from kodolly_templates import get_template

    template = get_template(template_name)
    special = template.special_tokens[0] if template.special_tokens else tokenizer.eos_token
    end = tokenizer.convert_tokens_to_ids(special)
    answer, ending, stops, sample = [], [], 0, ""
    with torch.inference_mode():
        for row in rows:
            made = _encoded(tokenizer, template, row)
            ids, labels = torch.tensor([made["input_ids"]]), torch.tensor(made["labels"])
            losses = torch.nn.functional.cross_entropy(
                net(input_ids=ids).logits[0, :-1], labels[1:], reduction="none", ignore_index=-100
            )
            learned = labels[1:] != -100
            last = labels[1:] == end
            answer.append(float(losses[learned & ~last].mean()))
            ending.append(float(losses[last].mean()))
            prompt = template.prompt([{"role": "user", "content": row["instruction"]}])
            asked = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            made_ids = net.generate(
                **asked, max_new_tokens=MOST, do_sample=False, eos_token_id=end, pad_token_id=0
            )[0, asked["input_ids"].shape[1] :]
            stops += int(made_ids[-1]) == end
            sample = sample or tokenizer.decode(made_ids)
    count = len(rows)
    return Outcome(way, sum(answer) / count, sum(ending) / count, stops / count, sample)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--steps", type=int, default=150, help="updates of every tuning")
    parser.add_argument("--base-steps", type=int, default=200, help="updates of the pre-training")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        model = pretrained(place, chosen.base_steps)
        made = lessons(1_200 + HELD_OUT, 5)
        held = made[:HELD_OUT]
        rows = base.write_rows(place / "rows.jsonl", made[HELD_OUT:])
        special, plain = "dolly-v2-special", "dolly-ko"
        found = [
            judged("study", *study(place, model, rows, chosen.steps), special, held),
            judged(
                "kodolly, special keys",
                *ours(place, model, rows, special, chosen.steps), special, held,
            ),
            judged(
                "kodolly, plain keys",
                *ours(place, model, rows, plain, chosen.steps), plain, held,
            ),
        ]  # fmt: skip
    text = _report(found, chosen.steps)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "flaw.md").write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


def _report(found: Sequence[Outcome], steps: int) -> str:
    lines = [
        f"{steps} updates of 8 rows, LoRA r {LORA['r']}, rate {RATE}, the same base and rows; {HELD_OUT} rows held out.",
        "",
        "| way | loss of an answer's tokens | loss of its end token | answers that end by themselves |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {one.way} | {one.answer_loss:.3f} | {one.end_loss:.3f} | {one.stops:.0%} |"
        for one in found
    ]
    lines += ["", "An answer of each:", ""]
    lines += [f"- {one.way}: `{one.sample!r}`" for one in found]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
