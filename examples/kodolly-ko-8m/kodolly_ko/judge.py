"""Measures a model directory: its loss on the held-out rows, and its answers to fixed prompts.

    cd examples/kodolly-ko-8m
    python -m kodolly_ko.judge MODEL --heldout heldout.jsonl --out figures.json

Loss is in nats per character of the answer, so that models with different tokenizers can be compared. No training
row asks in the words of a prompt. Each greedy answer is checked for three things (see Answer).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kodolly_ko import DATA
from kodolly_ko.corpus import is_held_out, own_rows
from kodolly_templates.catalogue import load
from kodolly_templates.messages import Messages

MAX_TOKENS = 100  # of an answer; the model did not stop by itself if it is longer
TRAINED_ONE_IN = 4  # `--exact` asks every fourth of our training rows
BATCH = 16  # prompts answered at once
KOREAN_SHARE = 0.3  # of an answer's letters; not more, since it may name commands in Latin letters


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and its three checks."""

    instruction: str
    context: str
    answer: str
    korean: bool
    stopped: bool
    expected: bool  # it contains one of the expected words


class Judge:
    """A model directory, run on the CPU with `template`, by default the one that its card names."""

    def __init__(self, directory: Path, template: str | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._template = load(directory, template)
        self._tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, trust_remote_code=False
        )
        self._model = model.eval()

    def loss(self, rows: Sequence[dict[str, str]]) -> float:
        """Nats per character of the responses of `rows`, including the end token's; 0 without rows."""
        total = sum(self._row_loss(row) for row in rows)
        return total / max(1, sum(len(row["response"]) for row in rows))

    def ask(self, rows: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
        """(greedy answer, whether it stopped by itself) to each row's instruction and context."""
        texts = [self._template.prompt(self._messages(row)) for row in rows]
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return [answer for part in parts for answer in self._generate(part)]

    def exact(self, rows: Sequence[dict[str, str]]) -> int:
        """To how many of `rows` the model answers with exactly the row's response."""
        pairs = zip(self.ask(rows), rows, strict=True)
        return sum(text == row["response"] for (text, _), row in pairs)

    def _generate(self, texts: list[str]) -> list[tuple[str, bool]]:
        import torch

        batch = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_tensors="pt",
            return_token_type_ids=False,
            padding=True,
            padding_side="left",
        )
        with torch.inference_mode():
            output = self._model.generate(**batch, max_new_tokens=MAX_TOKENS, do_sample=False)
        return [self._decode(ids.tolist()) for ids in output[:, batch["input_ids"].shape[1] :]]

    def _decode(self, ids: list[int]) -> tuple[str, bool]:
        ends = self._model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        length = next((index for index, token in enumerate(ids) if token in ends), len(ids))
        text, stopped = self._tokenizer.decode(ids[:length]), length < len(ids)
        for stop in self._template.stop:
            if stop in text:
                text, stopped = text[: text.index(stop)], True
        return text.strip(), stopped

    def _row_loss(self, row: dict[str, str]) -> float:
        import torch

        messages = self._messages(row)
        prompt = self._template.prompt(messages)
        messages = [*messages, {"role": "assistant", "content": row["response"]}]
        text = self._template.training(messages, self._tokenizer.eos_token).text
        start = len(self._ids(prompt)[0])
        ids = self._ids(text)
        with torch.inference_mode():
            logits = self._model(input_ids=ids).logits[0, start - 1 : -1]
        return float(torch.nn.functional.cross_entropy(logits, ids[0, start:], reduction="sum"))

    def _messages(self, row: dict[str, Any]) -> Messages:
        message = {"role": "user", "content": row["instruction"]}
        context = {"context": row["context"]} if row["context"] else {}
        return self._template.flatten([message | context])

    def _ids(self, text: str) -> Any:
        return self._tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]


def prompts(name: str = "prompts") -> list[dict[str, Any]]:
    """The fixed prompts: instruction, context, expected (words of which one must appear).

    Those called "blind" were written when all training files were final, and no decision was based on them.
    """
    text = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def check(prompt: dict[str, Any], text: str, *, stopped: bool) -> Answer:
    """The three checks of an answer to `prompt`."""
    return Answer(
        instruction=prompt["instruction"],
        context=prompt["context"],
        answer=text,
        korean=is_korean(text),
        stopped=stopped,
        expected=any(word in text for word in prompt["expected"]),
    )


def is_korean(text: str) -> bool:
    """Are at least KOREAN_SHARE of the letters of `text` Hangul?"""
    letters = [letter for letter in text if letter.isalpha()]
    hangul = sum("가" <= letter <= "힣" for letter in letters)
    return hangul > 0 and hangul >= KOREAN_SHARE * len(letters)


def figures(
    judge: Judge, heldout: Sequence[dict[str, str]], reading: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """All figures of one model, and every answer."""
    start = time.process_time()
    answers, blind = (_answers(judge, prompts(name)) for name in ("prompts", "blind"))
    return {
        "heldout_rows": len(heldout),
        "heldout_nats_per_character": round(judge.loss(heldout), 4),
        "reading_rows": len(reading),
        "reading_nats_per_character": round(judge.loss(reading), 4),
        "reading_exact": judge.exact(reading),
        "reading_chance": round(chance(reading), 1),
        **_counts(answers),
        "blind": _counts(blind),
        "cpu_seconds": round(time.process_time() - start, 1),
        "answers": [asdict(answer) for answer in answers],
        "blind_answers": [asdict(answer) for answer in blind],
    }


def _answers(judge: Judge, rows: Sequence[dict[str, Any]]) -> list[Answer]:
    return [
        check(prompt, text, stopped=stopped)
        for prompt, (text, stopped) in zip(rows, judge.ask(rows), strict=True)
    ]


def _counts(answers: Sequence[Answer]) -> dict[str, int]:
    return {
        "prompts": len(answers),
        "korean": sum(answer.korean for answer in answers),
        "stopped": sum(answer.stopped for answer in answers),
        "expected": sum(answer.expected for answer in answers),
        "all_three": sum(a.korean and a.stopped and a.expected for a in answers),
    }


def chance(reading: Sequence[dict[str, str]]) -> float:
    """How many of `reading` one would get right by chance.

    Namely by copying what has the right form from a random sentence of the text.
    """
    return sum(1 / _sentences(row) for row in reading)


def _sentences(row: dict[str, str]) -> int:
    return (row["context"] or row["instruction"]).count("다.")


def main(argv: Sequence[str]) -> int:
    """Judge one model directory; returns the exit status."""
    options = _parser().parse_args(argv)
    rows = [json.loads(line) for line in options.heldout.read_text(encoding="utf-8").splitlines()]
    reading = [row for row in rows if row.get("source") == "reading"]
    own = [row for row in rows if row.get("source") != "reading"]
    model = Judge(options.directory, options.template)
    result = figures(model, own, reading)
    if options.exact:
        training_rows = [row for row in own_rows() if not is_held_out(row)][::TRAINED_ONE_IN]
        result |= {"heldout_exact": model.exact(own), "trained_rows": len(training_rows)}
        result["trained_exact"] = model.exact(training_rows)
    text = json.dumps(result, ensure_ascii=False, indent=1) + "\n"
    options.out.write_text(text, encoding="utf-8")
    summary = {key: value for key, value in result.items() if not key.endswith("answers")}
    sys.stdout.write(json.dumps(summary, ensure_ascii=False) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kodolly_ko.judge")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--heldout", type=Path, required=True, metavar="FILE")
    parser.add_argument(
        "--exact", action="store_true", help="count exact answers to held-out and trained rows too"
    )
    parser.add_argument("--template", help="default: the model card's, else the tokenizer's own")
    parser.add_argument("--out", type=Path, default=Path("figures.json"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
