"""Makes the Korean model again, from rows to figures, with KoDolly's own commands.

    python examples/kodolly-ko-8m/make.py --out DIR \\
        --chatbot ChatbotData.csv --prose libreoffice_help_ko.txt

Every step writes a file or a folder into DIR and is skipped if that is there, so the same command
continues a killed run. DIR/release holds the files for this repository: base, adapter, results, and
the model directory kodolly-ko-8m that `kodolly fetch` copies.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from kodolly_adapters.embedded.fetch import packaged
from kodolly_ko import EXAMPLE, TEMPLATE, judge
from kodolly_ko.base import write_base
from kodolly_ko.corpus import Sources, write_corpus
from kodolly_templates.catalogue import get_template

NAME = "kodolly-ko-8m"
GENERATION = "generation_config.json"
# For requests without a temperature: at a higher one the answers of so small a model make no sense.
SAMPLING = {"do_sample": True, "temperature": 0.3}
BASE_FILES = ("model.safetensors", "tokenizer.json", "tokenizer_config.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "model_card.json")
RUNS = {"pretrained": "pretrain", "talked": "talk", "tuned": "tune"}  # folder -> recipe


class MakeError(Exception):
    """A step failed; its own message is printed above."""


def main(argv: Sequence[str]) -> int:
    """Run all steps that are not done; returns the exit status."""
    options = _parser().parse_args(argv)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    try:
        for name, result, step in _steps(out, options):
            if not (out / result).exists():
                sys.stderr.write(f"make: {name}\n")
                step()
    except (MakeError, OSError) as error:
        sys.stderr.write(f"make: {error}\n")
        return 1
    sys.stdout.write(f"{out / 'release'}\n")
    return 0


def _steps(
    out: Path, options: argparse.Namespace
) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """(name, the last file that the step writes, its function) of all steps in order."""
    sources = Sources(options.chatbot, options.prose)
    settings = [word for setting in options.set for word in ("--set", setting)]

    def train(folder: str) -> Callable[[], None]:
        recipe = EXAMPLE / "recipes" / f"{RUNS[folder]}.toml"
        return lambda: _kodolly(out, "train", str(recipe), *settings, "--out", folder)

    merge = ["merge", "base", "adapter", "--dtype", "fp16", "--out", "merged"]
    yield "corpus", "heldout.jsonl", lambda: write_corpus(sources, out, options.share)
    yield "tokenizer", "start/config.json", lambda: write_base(_texts(out), out / "start")
    yield "pre-training", "pretrained/model", train("pretrained")
    yield "second stage", "talked/model", train("talked")
    yield "base", "base", lambda: _base(out)
    yield "tuning", "tuned/adapter", train("tuned")
    yield "adapter", "adapter", lambda: _adapter(out)
    yield "merging", "merged/model_card.json", lambda: _kodolly(out, *merge)
    yield "judging", "figures.json", lambda: _judge(out)
    yield "release", "release", lambda: _release(out)


def _texts(out: Path) -> list[str]:
    """What the tokenizer is trained on: the documents, and the introduction before every prompt."""
    lines = (out / "pretrain.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    return [*texts, *[get_template(TEMPLATE).introduction] * 3]


def _kodolly(out: Path, *arguments: str) -> None:
    """Run `kodolly ...` in `out`: the recipes' paths are relative to it."""
    command = [sys.executable, "-m", "kodolly", *arguments]
    if subprocess.run(command, cwd=out, check=False).returncode:
        raise MakeError(f"kodolly {arguments[0]} failed; the same command continues from here")


def _base(out: Path) -> None:
    trained = out / "talked" / "model"
    generation = json.loads((trained / GENERATION).read_text(encoding="utf-8"))
    (out / GENERATION).write_text(
        json.dumps(generation | SAMPLING, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    # Not the config that training wrote: it says use_cache: false, which is for training only.
    others = [out / GENERATION, out / "start" / "config.json"]
    _gather(out / "base", [*(trained / name for name in BASE_FILES), *others])


def _adapter(out: Path) -> None:
    """The adapter without the files that the base has too."""
    _gather(out / "adapter", [out / "tuned" / "adapter" / name for name in ADAPTER_FILES])


def _gather(target: Path, files: Sequence[Path]) -> None:
    """Copy `files` into the new folder `target`; float32 weights are stored as float16."""
    part = _empty(target)
    for file in files:
        shutil.copyfile(file, part / file.name)
        if file.suffix == ".safetensors":
            _halve(part / file.name)
    part.rename(target)


def _empty(target: Path) -> Path:
    """An empty folder beside `target`, to be renamed to it when it is complete."""
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    return part


def _halve(path: Path) -> None:
    """Rewrite float32 weights as float16, which changes no held-out figure."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(path)
    save_file({name: w.to(torch.float16) for name, w in weights.items()}, path, {"format": "pt"})
    path.chmod(0o644)


def _judge(out: Path) -> None:
    model, heldout, figures = (out / name for name in ("merged", "heldout.jsonl", "figures.json"))
    arguments = [model, "--template", TEMPLATE, "--heldout", heldout, "--exact", "--out", figures]
    if judge.main([str(argument) for argument in arguments]):
        raise MakeError("judging failed")


def _release(out: Path) -> None:
    part = _empty(out / "release")
    for folder in ("base", "adapter"):
        shutil.copytree(out / folder, part / folder)
    write_model(out / "merged", out / "figures.json", part / NAME)
    results = part / "results"
    results.mkdir()
    shutil.copyfile(out / "figures.json", results / "figures.json")
    for folder, recipe in RUNS.items():
        shutil.copyfile(out / folder / "run.json", results / f"{recipe}-run.json")
        shutil.copyfile(out / folder / "curve.png", results / f"{recipe}-curve.png")
    part.rename(out / "release")


def write_model(merged: Path, figures: Path, target: Path) -> None:
    """Write the model directory for the package to `target`: `merged` with card, figures and licences.

    The weights are stored in float16, but the config asks for computing in float32: any CPU is fast
    enough for so small a model, and the answers are those of the weights before rounding.
    """
    ignore = shutil.ignore_patterns("merge.json", ".*")
    shutil.copytree(merged, target, ignore=ignore)
    for name in ("LICENSE", "NOTICE"):
        shutil.copyfile(packaged() / name, target / name)
    numbers = json.loads(figures.read_text(encoding="utf-8"))
    metrics = {key: value for key, value in numbers.items() if not key.endswith("answers")}
    facts = {"name": NAME, "template": TEMPLATE, "license": "Apache-2.0", "metrics": metrics}
    _edit(target / "model_card.json", facts | {"created_by": "kodolly fetch"})
    _edit(target / "config.json", {"dtype": "float32", "torch_dtype": "float32"})


def _edit(path: Path, change: Mapping[str, object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make.py", description="Make kodolly-ko-8m again.")
    add = parser.add_argument
    add(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the results of all steps"
    )
    add("--chatbot", type=Path, metavar="FILE", help="ChatbotData.csv (MIT)")
    add("--prose", type=Path, metavar="FILE", help="Korean prose, a paragraph a line")
    add("--share", type=float, default=1.0, help="share of every file's lines, for a quick try")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="as in kodolly train, for all three recipes",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
