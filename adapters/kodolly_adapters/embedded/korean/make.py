"""Make the Korean model again, from rows to figures, by the commands anyone uses.

    python -m kodolly_adapters.embedded.korean.make --out DIR \\
        --chatbot ChatbotData.csv --prose libreoffice_help_ko.txt

Each step leaves a folder and is skipped when it is there, so a killed run goes on. What is committed
in this package comes to DIR/release: base, adapter, figures.json, the runs' records and their curves.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path

from kodolly_adapters.embedded.korean import judge
from kodolly_adapters.embedded.korean.base import write_base
from kodolly_adapters.embedded.korean.corpus import Sources, pretraining_texts, write_corpus
from kodolly_adapters.embedded.korean.model import TEMPLATE
from kodolly_templates.catalogue import get_template

GENERATION = "generation_config.json"
# What a client that names no temperature gets: so small a model wanders when it draws freely.
DRAWING = {"do_sample": True, "temperature": 0.3}
BASE_FILES = (
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "model_card.json")


class MakeError(Exception):
    """A step did not end well; its own words stand above."""


def main(argv: Sequence[str]) -> int:
    """Run all steps that are not done; returns the exit status."""
    options = _parser().parse_args(argv)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    sources = Sources(options.chatbot, options.prose)
    try:
        for name, done, step in _steps(out, sources, options.set):
            if not (out / done).exists():
                sys.stderr.write(f"make: {name}\n")
                step()
    except (MakeError, OSError) as error:
        sys.stderr.write(f"make: {error}\n")
        return 1
    sys.stdout.write(f"{out / 'release'}\n")
    return 0


def _steps(
    out: Path, sources: Sources, settings: Sequence[str]
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(what it does, the last file it leaves, the step) in order."""
    chosen = [part for setting in settings for part in ("--set", setting)]
    pretrain = ["train", _recipe("pretrain"), *chosen, "--out", "pretrained"]
    talk = ["train", _recipe("talk"), *chosen, "--out", "talked"]
    tune = ["train", _recipe("tune"), *chosen, "--out", "tuned"]
    merge = ["merge", "base", "adapter", "--dtype", "fp32", "--out", "merged"]
    yield "data", "heldout.jsonl", lambda: write_corpus(sources, out)
    yield "tokenizer", "start/config.json", lambda: write_base(_words(sources), out / "start")
    yield "pre-training", "pretrained/model", lambda: _kodolly(out, pretrain)
    yield "second stage", "talked/model", lambda: _kodolly(out, talk)
    yield "base", "base", lambda: _base(out)
    yield "tuning", "tuned/adapter", lambda: _kodolly(out, tune)
    yield "adapter", "adapter", lambda: _adapter(out)
    yield "merging", "merged/model_card.json", lambda: _kodolly(out, merge)
    yield "judging", "figures.json", lambda: _judge(out)
    yield "release", "release", lambda: _release(out)


def _words(sources: Sources) -> list[str]:
    """What the tokenizer is learned from: the documents, and what stands before every prompt."""
    return [*pretraining_texts(sources), *[get_template(TEMPLATE).introduction] * 3]


def _kodolly(out: Path, arguments: list[str]) -> None:
    """Run `kodolly ...` in `out`, whose paths the recipes name."""
    command = Path(sys.executable).with_name("kodolly")
    if subprocess.run([str(command), *arguments], cwd=out, check=False).returncode:
        raise MakeError(f"kodolly {arguments[0]} failed; the same command goes on from here")


def _base(out: Path) -> None:
    trained = out / "talked" / "model"
    generation = json.loads((trained / GENERATION).read_text(encoding="utf-8"))
    (out / GENERATION).write_text(
        json.dumps(generation | DRAWING, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    # The trained copy of the config says use_cache: false, which is for training only.
    others = [out / GENERATION, out / "start" / "config.json"]
    _gather(out / "base", [*(trained / name for name in BASE_FILES), *others])


def _adapter(out: Path) -> None:
    """The adapter without what the base has already, in half the bytes."""
    _gather(out / "adapter", [out / "tuned" / "adapter" / name for name in ADAPTER_FILES])


def _gather(target: Path, files: Sequence[Path]) -> None:
    """Copy `files` into the new folder `target`, float32 weights among them as float16."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for file in files:
        shutil.copyfile(file, part / file.name)
        if file.suffix == ".safetensors":
            _halve(part / file.name)
    part.rename(target)


def _halve(path: Path) -> None:
    """Rewrite float32 weights as float16: nothing that a held-out figure shows."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    save_file({name: w.to(torch.float16) for name, w in weights.items()}, path, {"format": "pt"})
    path.chmod(0o644)


def _judge(out: Path) -> None:
    model, held, figures = (out / name for name in ("merged", "heldout.jsonl", "figures.json"))
    arguments = [model, "--template", TEMPLATE, "--heldout", held, "--exact", "--out", figures]
    if judge.main([str(argument) for argument in arguments]):
        raise MakeError("judging failed")


def _release(out: Path) -> None:
    part = out / ".release.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for folder in ("base", "adapter"):
        shutil.copytree(out / folder, part / folder)
    shutil.copyfile(out / "figures.json", part / "figures.json")
    for run, name in (("pretrained", "pretrain"), ("talked", "talk"), ("tuned", "tune")):
        shutil.copyfile(out / run / "run.json", part / f"{name}-run.json")
        shutil.copyfile(out / run / "curve.png", part / f"{name}-curve.png")
    part.rename(out / "release")


def _recipe(name: str) -> str:
    return str(resources.files(__package__).joinpath("recipes", f"{name}.toml"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kodolly_adapters.embedded.korean.make")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="where every step leaves its work")
    add("--chatbot", type=Path, metavar="FILE", help="ChatbotData.csv (MIT)")
    add("--prose", type=Path, metavar="FILE", help="Korean prose, a paragraph a line")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="for all three recipes")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
