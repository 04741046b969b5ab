"""examples/kodolly-ko-8m: its parts make the packaged model, and its figures follow from its answers."""

import json
import re
import tomllib
from pathlib import Path

import make
import pytest

from kodolly_adapters.embedded.fetch import packaged
from kodolly_adapters.merge.cli import main as merge
from kodolly_adapters.train.recipe import load as load_recipe
from kodolly_ko import EXAMPLE, corpus, judge

RESULTS = EXAMPLE / "results"


def repository_files() -> list[Path]:
    files = [path for path in EXAMPLE.rglob("*") if path.is_file()]
    return [*[path for path in files if "__pycache__" not in path.parts], *packaged().iterdir()]


def test_base_and_adapter_make_the_packaged_model(tmp_path: Path) -> None:
    """`kodolly merge` and the example's last step give the directory that ships, file by file."""
    from safetensors.torch import load_file

    merged, model = tmp_path / "merged", tmp_path / "model"
    paths = [str(EXAMPLE / "base"), str(EXAMPLE / "adapter"), "--out", str(merged)]
    assert merge([*paths, "--dtype", "fp16", "--no-verify", "--quiet"]) == 0
    make.write_model(merged, RESULTS / "figures.json", model)
    assert {path.name for path in model.iterdir()} == {path.name for path in packaged().iterdir()}
    for path in model.iterdir():
        if path.suffix != ".safetensors":
            assert path.read_bytes() == (packaged() / path.name).read_bytes(), path.name
    weights, packaged_weights = (load_file(d / "model.safetensors") for d in (model, packaged()))
    assert weights.keys() == packaged_weights.keys()
    for name, tensor in packaged_weights.items():
        assert weights[name].dtype == tensor.dtype
        # Another CPU may sum in another order: at most the last bit of float16.
        assert weights[name].float().allclose(tensor.float(), rtol=2**-10, atol=1e-7), name


def test_the_packaged_model_gives_the_committed_answers() -> None:
    """The judge gets the first committed answers again (another CPU may differ in one), and low losses."""
    model = judge.Judge(packaged())
    figures = json.loads((RESULTS / "figures.json").read_text(encoding="utf-8"))
    answers = figures["answers"][:8]
    expected = [(answer["answer"], answer["stopped"]) for answer in answers]
    assert sum(map(tuple.__eq__, model.ask(answers), expected)) >= len(expected) - 1
    assert 0 < model.loss(corpus.held_out_rows()[:8]) < 1


@pytest.mark.parametrize("path", sorted((EXAMPLE / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_are_valid(path: Path) -> None:
    """`kodolly train` accepts every recipe, and each names a base and files that make.py makes."""
    recipe = load_recipe(str(path), {})
    assert recipe.data.train[0] in {"pretrain.jsonl", "talk.jsonl", "tune.jsonl"}
    assert tomllib.loads(path.read_text(encoding="utf-8"))["name"] == recipe.name


def test_all_that_is_committed_is_small() -> None:
    """Data, weights, figures and pictures of the example stay under 25 MB."""
    assert sum(path.stat().st_size for path in EXAMPLE.rglob("*") if path.is_file()) < 25_000_000


def test_nothing_of_the_sources_is_committed() -> None:
    """No file but our rows, questions and prompts holds running Korean text."""
    texts = {
        p.name for p in repository_files() if p.suffix in {".jsonl", ".csv", ".txt", ".parquet"}
    }
    assert texts == {
        "rows.jsonl",
        "phrasings.jsonl",
        "prompts.jsonl",
        "reading.jsonl",
        "blind.jsonl",
    }


def test_nothing_names_the_machine_it_was_made_on() -> None:
    """No committed text holds an absolute path."""
    for path in repository_files():
        if path.suffix in {".json", ".md", ".toml"} and path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"[\"'\s](/tmp|/work|/home|/root)\b", text), path


def test_its_figures_are_those_of_its_answers() -> None:
    """The committed counts follow from the answers beside them, and the model card shows them."""
    figures = json.loads((RESULTS / "figures.json").read_text(encoding="utf-8"))
    answers = figures["answers"]
    assert figures["prompts"] == len(answers) == len(judge.prompts())
    for check in ("korean", "stopped", "expected"):
        assert figures[check] == sum(answer[check] for answer in answers)
    heldout = [row for row in corpus.held_out_rows() if "source" not in row]
    assert figures["heldout_rows"] == len(heldout)
    blind = figures["blind_answers"]
    assert figures["blind"]["prompts"] == len(blind) == len(judge.prompts("blind"))
    assert figures["blind"]["expected"] == sum(answer["expected"] for answer in blind)
    card = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert str(figures["heldout_nats_per_character"]) in card
    assert f"{figures['all_three']} / {figures['prompts']}" in card
    assert f"{figures['blind']['all_three']} / {figures['blind']['prompts']}" in card
