"""`kodolly plan`: its flags, errors and output, and the batches it says would fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kodolly_adapters.train.estimate import GIB, setup_of
from kodolly_adapters.train.plan import choose, fits, gpus, largest, on_gpus, plan, ways
from kodolly_adapters.train.plan_cli import duration, main
from kodolly_adapters.train.recipe import built_in, load
from kodolly_adapters.train.shapes import Shapes, shapes_of, table

ROOT = Path(__file__).parents[3]
LORA = "polyglot-ko-5.8b-lora"


def _answer(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def _shapes_and_setup(name: str) -> tuple[Shapes, dict[str, Any]]:
    recipe = load(name)
    return shapes_of(table("bases.toml")[recipe.base]["config"]), setup_of(recipe)


@pytest.mark.parametrize(
    ("argv", "status", "text"),
    [
        ([LORA, "--gpus", "1,x"], 2, "--gpus 1,x: give numbers of GPUs"),
        ([LORA, "--gpus", "0"], 2, "--gpus 0"),
        ([LORA, "--gpu", "v100"], 2, "--gpu v100: no such GPU here; there are a100-40, a100-80"),
        ([LORA, "--rows", "0"], 2, "--rows 0: give at least 1"),
        ([LORA, "--mfu", "40"], 2, "--mfu 40: give from 0.01 to 1"),
        ([LORA, "--price", "-1"], 2, "--price -1: give at least 0"),
        ([LORA, "--set", "train.epochs"], 2, "--set train.epochs: write KEY=VALUE"),
        ([LORA, "--set", "train.epoch=1"], 1, "train.epoch"),
        ([LORA, "--set", "lora.targets=['q_proj']"], 1, "gpt_neox has no linear layer q_proj"),
        ([LORA, "--set", "template=vicuna"], 1, "template: no template 'vicuna'"),
        ([LORA, "--set", "base=./nowhere"], 1, "./nowhere: no such folder"),
        (
            ["no-such-recipe"],
            1,
            "nor a built-in recipe; the built-in recipes are koalpaca-polyglot-12.8b-lora",
        ),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else None,
)
def test_bad_use_is_named(
    capsys: pytest.CaptureFixture[str], argv: list[str], status: int, text: str
) -> None:
    """A bad flag, key or name ends in one line that names it, and in the right status."""
    assert main(argv) == status
    answer = capsys.readouterr()
    assert text in answer.err
    assert "Traceback" not in answer.err
    assert answer.out == ""


def test_no_recipe_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a recipe the command says what it wants."""
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "give a RECIPE" in capsys.readouterr().err


def test_list_names_the_built_in(capsys: pytest.CaptureFixture[str]) -> None:
    """--list prints the recipes, one a line."""
    assert main(["--list"]) == 0
    assert LORA in capsys.readouterr().out.split("\n")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "a base's folder holds a config.json"),
        ("{", "not a JSON object"),
        ("[]", "not a JSON object"),
        ("{}", "names no model_type"),
    ],
    ids=["missing", "broken", "array", "empty"],
)
def test_base_folder_without_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, text: str
) -> None:
    """A base's folder whose config.json is missing or broken is refused with its path."""
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    assert main([LORA, "--set", f"base={tmp_path}"]) == 1
    assert text in capsys.readouterr().err


def test_plan_of_a_folder_of_any_decoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with nothing but the config of another decoder is planned, targets and all."""
    config = {
        "model_type": "qwen2",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    answer = _answer(capsys, LORA, "--set", f"base={tmp_path}", "--set", "lora.targets=[]")
    # 2 x (64 x 64 x 2 + 64 x 32 x 2 + 64 x 96 x 3, biases 64 + 32 + 32, norms 128) + 64 + 2 x 512 x 64
    assert answer["parameters"] == 2 * (8_192 + 4_096 + 18_432 + 128 + 128) + 64 + 65_536
    assert answer["shapes"]["family"]["targets"][0] == "q_proj"


def test_unknown_hub_name_says_what_to_do_offline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hub name that is not at hand ends in one line with the way out, not in a traceback."""
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_OFFLINE", True
    )  # read from the environment once
    assert main([LORA, "--set", "base=someone/some-model"]) == 1
    error = capsys.readouterr().err
    assert "put the base's config.json into a folder and give --set base=FOLDER" in error
    assert "Traceback" not in error


def test_built_in_plans_import_no_torch() -> None:
    """The plan of a known family is arithmetic alone: torch and transformers stay unloaded."""
    code = (
        "import sys; from kodolly_adapters.train.plan_cli import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, LORA], check=True, timeout=300, capture_output=True)


def test_flags_change_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """Rows, tokens, price, utilisation, GPUs and --set all reach the figures."""
    flags = ["--rows", "1000", "--tokens-per-row", "490", "--price", "7", "--mfu", "0.5"]
    answer = _answer(
        capsys, LORA, *flags, "--gpus", "2", "--gpu", "a100-40", "--set", "train.epochs=1"
    )
    assert answer["rows"]["tokens"] == 490_000
    (machine,) = answer["machines"]
    assert (machine["gpu"]["name"], machine["gpus"]) == ("a100-40", 2)
    assert machine["cost"]["tokens"] == 490_000
    assert machine["cost"]["price"] == pytest.approx(machine["cost"]["hours"] * 2 * 7)
    # a pass is 2 GPUs x 8 x 2,048 x accumulation 2 = 65,536 places, 0.98 of them filled: 7.6 steps
    assert machine["cost"]["steps"] == 8
    work = answer["flops_per_token"]["total"]
    assert machine["cost"]["tokens_per_second"] == pytest.approx(
        312e12 * 0.5 * 0.95 * 2 / work * 0.98
    )


def test_max_steps_and_max_rows_end_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """train.max_steps is the run's length; data.max_rows caps the rows."""
    few = _answer(capsys, LORA, "--set", "train.max_steps=10", "--set", "data.max_rows=50")
    assert few["rows"]["rows"] == 50
    assert all(machine["cost"]["steps"] == 10 for machine in few["machines"])


def test_rows_at_hand_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the recipe's files are here, their rows and characters count, not the study's."""
    rows = tmp_path / "train.jsonl"
    row = {"instruction": "가" * 40, "context": "", "response": "나" * 60, "category": "open_qa"}
    talk = {"messages": [{"role": "user", "content": "다" * 100}, {"role": "assistant"}]}
    rows.write_text(f"{json.dumps(row)}\n{json.dumps(talk)}\n\nbroken\n", encoding="utf-8")
    answer = _answer(capsys, LORA, "--set", f'data.train=["{rows}"]')
    # 100 characters and 100 of the template, at half a token each; the broken line is a row still
    assert (answer["rows"]["rows"], answer["rows"]["per_row"]) == (3, 100)
    assert answer["rows"]["measured"] == {"rows": 3, "sampled": 2, "characters": 100}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_are_sampled_from_all_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A head of short rows does not decide: the mean is that of all rows, and the page says of how many it is."""
    rows = [
        {"instruction": "가", "response": "나" * (9 if n < 9_000 else 999)} for n in range(18_000)
    ]
    path = tmp_path / f"train.{kind}"
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    flags = ["--set", f"data.train={path}"]
    measured = _answer(capsys, LORA, *flags)["rows"]["measured"]
    assert measured["rows"] == 18_000
    assert 2_000 <= measured["sampled"] <= 4_000
    assert measured["characters"] == pytest.approx(505, rel=0.01)
    assert main([LORA, *flags]) == 0
    said = f"mean of {measured['sampled']:,} of 18,000 rows, spread over the files"
    assert said in capsys.readouterr().out


def test_tokens_are_counted_where_the_tokenizer_is_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the embedded model's tokenizer, not of an assumption about one."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "안녕하세요?", "response": "반갑습니다."}\n', encoding="utf-8")
    answer = _answer(capsys, "tiny-neox-lora", "--set", f"data.train={rows}")
    assert 0.2 < answer["base"]["tokens_per_character"] < 0.9


def test_measuring_needs_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """--measure without the recipe's files is refused with what is missing, before torch is loaded."""
    assert main([LORA, "--measure"]) == 2
    error = capsys.readouterr().err
    assert "--measure needs rows to train on: data.train is rows/train.jsonl" in error


def test_too_large_a_model_is_said_not_to_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model beyond one GPU is planned where it fits, and the table says where it does not."""
    config = table("bases.toml")["openlm-research/open_llama_13b"]["config"] | {
        "hidden_size": 16384,
        "num_hidden_layers": 100,
        "num_attention_heads": 128,
        "intermediate_size": 53248,
    }
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert main(["open-llama-13b-lora", "--set", f"base={tmp_path}", "--gpu", "h100"]) == 0
    answer = capsys.readouterr().out
    assert "1 x H100 80 GB  does not fit" in answer
    assert "LoRA none / none" in answer


@pytest.mark.parametrize("name", ["polyglot-ko-1.3b-full", "polyglot-ko-12.8b-lora"])
@pytest.mark.parametrize("kind", gpus())
def test_largest_batch_fits_and_one_more_does_not(name: str, kind: str) -> None:
    """The largest batch is exactly that, in every way to run."""
    shapes, setup = _shapes_and_setup(name)
    for way in ways(shapes, on_gpus(load(name), 8), gpus()[kind]):
        run = setup | {"method": way["method"], "strategy": way["strategy"], "gpus": 8}
        for checkpointing, batch in ((True, way["checkpointed"]), (False, way["plain"])):
            own = run | {"checkpointing": checkpointing}
            assert largest(shapes, own, gpus()[kind]) == batch
            assert batch == 0 or fits(shapes, own | {"batch": batch}, gpus()[kind])
            assert not fits(shapes, own | {"batch": batch + 1}, gpus()[kind])


def test_choice_changes_as_little_as_it_can() -> None:
    """As the GPU shrinks: smaller batches at the same effective size, then QLoRA, then nothing."""
    shapes, setup = _shapes_and_setup("polyglot-ko-12.8b-lora")

    def on(gib: float) -> dict[str, Any] | None:
        return choose(shapes, [setup], {"memory": int(gib * GIB)})

    assert on(40) == setup
    assert on(34) == setup | {"batch": 2, "accumulation": 8}
    assert on(30) == setup | {"batch": 1, "accumulation": 16}
    assert on(18) == setup | {"method": "qlora"}
    assert on(8) is None


def test_printed_lines_fit_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """The text for people is no wider than 120 columns and ends in a newline."""
    assert main(["polyglot-ko-1.3b-full"]) == 0
    answer = capsys.readouterr().out
    assert answer.endswith("\n")
    assert max(map(len, answer.splitlines())) <= 120


def test_docs_show_the_plan_of_every_recipe_of_the_study() -> None:
    """docs/plan.md has one table of them, as computed now; the message of a failure is the table to paste."""
    lines = []
    for name in built_in():
        recipe = load(name)
        if not recipe.study:
            continue
        answer = plan(recipe, (1, 8), ("a100-80", "h100"))
        cells = [name, f"{answer['parameters']:,}", f"{answer['trainable']:,}"]
        own = [column for column in answer["memory"] if column["method"] == recipe.method]
        assert [(c["gpus"], c["strategy"]) for c in own] == [(1, "none"), (8, "ddp"), (8, "fsdp")]
        cells += [f"{column['memory']['total'] / GIB:,.1f}" for column in own]
        for machine in answer["machines"]:
            cost = machine["cost"]
            cells.append(f"{duration(cost['hours'])}, {cost['price']:,.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    document = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 8
    assert [
        line for line in document if line.split(" ")[1:2] and line.split(" ")[1] in built_in()
    ] == lines
