"""The parts of `kodolly train` that need no run: schedule, checkpoints, precision, tokenizers, the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import make_tiny_llama, make_tiny_neox
from support.tiny_runs import rows_file, toy
from transformers import TrainerState, TrainingArguments

from kodolly_adapters.errors import BaseError, InputError, RecipeError
from kodolly_adapters.train import cli, model, run_folder
from kodolly_adapters.train.callbacks import Checkpoints, draw_curve
from kodolly_adapters.train.model import Hardware, choose_precision
from kodolly_adapters.train.run import Run
from kodolly_adapters.train.run_folder import finish_checkpoint, finished_checkpoints
from kodolly_adapters.train.shapes import load_config
from kodolly_adapters.train.tokenizer import add_template_tokens, load_tokenizer
from kodolly_adapters.train.trainer import arguments, make_schedule, micro_batches
from kodolly_templates import get_template

CPU = Hardware("cpu", ("some",), 1, 0, bf16=False, flash=False)
OLD_GPU = Hardware("cuda", ("V100",), 1, 0, bf16=False, flash=False)
GPU = Hardware("cuda", ("A100",), 1, 0, bf16=True, flash=False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("bases") / "llama")


@pytest.mark.parametrize(
    ("setting", "machine", "precision"),
    [
        ("auto", CPU, "fp32"), ("auto", OLD_GPU, "fp16"), ("auto", GPU, "bf16"),
        ("bf16", CPU, "bf16"), ("fp16", GPU, "fp16"),
    ],
)  # fmt: skip
def test_precision_follows_the_hardware(setting: str, machine: Hardware, precision: str) -> None:
    """ "auto" takes the fastest that the device has; any other setting is taken as it is."""
    assert choose_precision(setting, machine) == precision


def test_precision_that_is_not_there_is_refused() -> None:
    """fp16 on a CPU and bf16 on a GPU without it: the key and a way out."""
    with pytest.raises(RecipeError, match=r'train\.precision: "fp16" needs a GPU'):
        choose_precision("fp16", CPU)
    with pytest.raises(RecipeError, match=r"V100 has no bf16"):
        choose_precision("bf16", OLD_GPU)


@pytest.mark.parametrize(
    ("batch", "length", "expected"), [(8, 256, (8, 2)), (8, 512, (4, 4)), (6, 512, (3, 4)), (4, 4096, (1, 8))]
)  # fmt: skip
def test_packed_batches_are_computed_in_pieces(
    batch: int, length: int, expected: tuple[int, int]
) -> None:
    """A dense mask is never over much more than 2,048 tokens, and a step keeps its sequences."""
    recipe = toy(Path("base"), "rows", data__max_length=length, train__batch_size=batch,
                 train__accumulation=2)  # fmt: skip
    size, passes = micro_batches(recipe, flash=False)
    assert (size, passes) == expected
    assert size * passes == batch * 2
    assert micro_batches(recipe, flash=True) == (batch, 2)


def test_a_schedule_looks_ten_times() -> None:
    """Without a word evaluations and checkpoints come ten times; epochs are counted as transformers does."""
    recipe = toy(Path("base"), "rows", data__packing=False, train={"epochs": 3})
    schedule, alone = (
        make_schedule(recipe, 1000, validation=validation, hardware=replace(CPU, world=2))
        for validation in (True, False)
    )
    assert (schedule.steps, schedule.evaluate, schedule.save) == (48, 5, 5)
    assert alone.evaluate is None


def test_a_schedule_that_would_lose_the_best_is_refused() -> None:
    """Saving between evaluations could not keep the best of them."""
    recipe = toy(Path("base"), "rows", train__eval_steps=5, train__save_steps=7)
    with pytest.raises(RecipeError, match=r"train\.save_steps: 7 is no multiple .* 5"):
        make_schedule(recipe, 100, validation=True, hardware=CPU)


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"w" * 100)
    finish_checkpoint(path)
    return path


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    """One without a mark, and one with a file cut short, are no checkpoints and are swept away."""
    whole, cut, bare = (checkpoint(tmp_path, step) for step in (2, 10, 9))
    (cut / "weights").write_bytes(b"w")
    (bare / run_folder.MARK).unlink()
    assert finished_checkpoints(tmp_path) == [whole]
    run_folder.sweep_checkpoints(tmp_path)
    assert sorted(tmp_path.iterdir()) == [whole]


@pytest.mark.parametrize(
    ("keep", "best", "left"), [(2, None, {8, 10}), (2, 4, {4, 10}), (1, 4, {4, 10}), (1, None, {10})]
)  # fmt: skip
def test_old_checkpoints_go(tmp_path: Path, keep: int, best: int | None, left: set[int]) -> None:
    """The newest stays to go on from, the best to end with; the rest goes beyond `keep`."""
    paths = {step: checkpoint(tmp_path, step) for step in (2, 4, 8, 10)}
    state = TrainerState(global_step=10, best_model_checkpoint=str(paths[best]) if best else None)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    Checkpoints(keep).on_save(args, state, None)
    assert set(map(run_folder.step_of, finished_checkpoints(tmp_path))) == left


def test_a_curve_needs_no_evaluations(tmp_path: Path) -> None:
    """A picture comes out of losses alone."""
    records = [{"step": 1, "loss": 3.0, "learning_rate": 0.1}]
    draw_curve(records, tmp_path / "curve.png", "my run")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_polyglots_misspelt_padding_becomes_no_new_token(tmp_path: Path) -> None:
    """A padding token that no vocabulary holds is replaced by the end token; the vocabulary keeps its size."""
    base = make_tiny_neox(tmp_path / "base")
    size = len(load_tokenizer(toy(base, "rows"))[0])
    change(base / "tokenizer_config.json", pad_token="<|endoftext|>>", eos_token="<eos>",
           model_input_names=["input_ids", "token_type_ids", "attention_mask"])  # fmt: skip
    tokenizer, repairs = load_tokenizer(toy(base, "rows"))
    assert len(tokenizer) == size
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>",) * 2
    assert "token_type_ids" not in tokenizer("안녕하세요")
    assert len(repairs) == 3


def test_llama_gets_the_names_of_its_marks_back(tmp_path: Path) -> None:
    """Empty names, as one upload has them, become <unk>, <s> and </s>: ids 0, 1 and 2, with a bos before a text."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    base = make_tiny_llama(tmp_path / "base")
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "a", "b", "ab"])}
    raw = Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(str(base))
    change(base / "tokenizer_config.json", bos_token="", eos_token="", unk_token="")
    tokenizer, repairs = load_tokenizer(toy(base, "rows"))
    ids = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (0, 1, 2)
    assert tokenizer("ab")["input_ids"] == [1, 5]
    assert "LLaMA's marks" in repairs[0]


def test_an_end_that_is_the_unknown_token_too_is_an_end(tmp_path: Path) -> None:
    """Pythia and GPT-NeoX call both <|endoftext|>, and no text is unknown to their tokenizers."""
    base = make_tiny_neox(tmp_path / "base")
    end = "<|endoftext|>"
    change(base / "tokenizer_config.json", eos_token=end, unk_token=end, bos_token=end)
    tokenizer, repairs = load_tokenizer(toy(base, "rows"))
    assert (tokenizer.eos_token, tokenizer.unk_token) == (end, end)
    assert repairs == ()


@pytest.mark.parametrize("end", ["", "<unk>"])
def test_a_tokenizer_that_has_lost_its_end_is_refused(tmp_path: Path, end: str) -> None:
    """LLaMA's unknown token, or nothing, as the end: no answer could stop, and nothing says what could."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    base = make_tiny_llama(tmp_path / "base")
    vocabulary = {token: i for i, token in enumerate(["<unk>", "a", "b", "ab"])}
    raw = Tokenizer(models.BPE(vocabulary, [("a", "b")], unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(str(base))
    change(base / "tokenizer_config.json", eos_token=end, unk_token="<unk>")
    with pytest.raises(BaseError, match="names no end token"):
        load_tokenizer(toy(base, "rows"))


def test_padded_vocabularies_never_shrink(llama: Path) -> None:
    """Polyglot has more rows than tokens; new tokens take spare rows, whose start is near the others."""
    recipe = toy(llama, "rows", template="dolly-v2-special")
    config = load_config(recipe.base, None)
    config.vocab_size = 704
    net = model.load_model(toy(llama, "rows", method="full", start="random"), config, "fp32", CPU)
    tokenizer, _ = load_tokenizer(recipe)
    new = add_template_tokens(tokenizer, get_template("dolly-v2-special"), recipe, 704)
    model.grow(net, tokenizer, new, 1)
    assert len(net.get_input_embeddings().weight) == 704
    for layer in (net.get_input_embeddings(), net.get_output_embeddings()):
        known, fresh = layer.weight[: new[0]], layer.weight[list(new)]
        assert (fresh - known.mean(0)).norm(dim=1).max() < 0.2 * known.norm(dim=1).mean()
        assert fresh.unique(dim=0).shape[0] == 3


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    """A base of .bin files only is not opened; the error says what to do."""
    base = make_tiny_llama(tmp_path / "base")
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(BaseError, match=r"\*\.bin weights, which can run code.*Save the model as"):
        Run(toy(base, "rows"), tmp_path)


def test_weights_that_are_cut_short_are_refused(tmp_path: Path) -> None:
    """A download that ended early is noticed before any row is prepared, and the file is named."""
    weights = make_tiny_llama(tmp_path / "base") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: cut short"):
        Run(toy(tmp_path / "base", "rows"), tmp_path)


def test_a_base_without_all_its_tensors_is_refused(llama: Path, tmp_path: Path) -> None:
    """Missing tensors would be random: the first one missing is named."""
    from safetensors.torch import load_file, save_file

    base = make_tiny_llama(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    recipe = toy(base, "rows")
    with pytest.raises(BaseError, match=r"no model\.layers\.1\.mlp\.up_proj\.weight"):
        model.load_model(recipe, load_config(recipe.base, None), "fp32", CPU)


def test_unknown_targets_are_refused(llama: Path) -> None:
    """A target of another family is named, with those that there are."""
    recipe = toy(llama, "rows", lora__targets=["query_key_value"])
    net = model.load_model(recipe, load_config(recipe.base, None), "fp32", CPU)
    with pytest.raises(RecipeError, match=r"no linear layer 'query_key_value'.*q_proj"):
        model.wrap(net, recipe, ())


def test_embeddings_are_no_targets(llama: Path) -> None:
    """LoRA on them with DoRA could not be merged; their rows are trained where the base has none."""
    recipe = toy(llama, "rows", lora__targets=["embed_tokens"], lora__dora=True)
    net = model.load_model(recipe, load_config(recipe.base, None), "fp32", CPU)
    with pytest.raises(RecipeError, match="no linear layer 'embed_tokens'"):
        model.wrap(net, recipe, ())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"vocab_size": 700}, r"lm_head\.weight is \[640, 128\] in its files, .* says \[700, 128\]"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "Train on the model it was quantised from"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_the_weights_is_refused(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    """Rows that are not there, and weights that no adapter can be merged into: config.json is named with the cure."""
    base = make_tiny_llama(tmp_path / "base")
    change(base / "config.json", **values)
    recipe = toy(base, "rows")
    config = load_config(recipe.base, None)

    def load() -> None:
        model.check_base(recipe, config)
        model.load_model(recipe, config, "fp32", CPU)

    with pytest.raises(BaseError, match=said):
        load()


def test_rows_as_they_were_made_are_told_from_trained_ones(llama: Path) -> None:
    """Zeros, the mean of the others and random numbers of the config's spread are untrained, in either embedding."""
    import torch

    net = model.load_model(toy(llama, "rows"), load_config(str(llama), None), "fp32", CPU)
    net.config.initializer_range = 0.02  # so all of its rows, ten times as long, count as trained
    ids = (630, 631, 632, 633)
    assert model.untrained_rows(net, ids) == [
        token for token in ids if not net.lm_head.weight[token].any()
    ]
    with torch.no_grad():
        net.lm_head.weight.normal_(0.1, 0.2)
        net.lm_head.weight[630] = 0
        net.lm_head.weight[631] = net.lm_head.weight[:630].mean(0) + 0.001
        net.model.embed_tokens.weight[632].normal_(0, 0.02)
    assert model.untrained_rows(net, ids) == [630, 631, 632]


@pytest.mark.parametrize("last_id", [700, 2000])
def test_ids_that_are_left_out_have_rows_too(tmp_path: Path, last_id: int) -> None:
    """A tokenizer with gaps has larger ids than tokens; all rows up to the largest are trained, unless too many."""
    base = make_tiny_llama(tmp_path / "base")
    path = base / "tokenizer.json"
    values = json.loads(path.read_text())
    last = max(values["model"]["vocab"], key=values["model"]["vocab"].get)
    values["model"]["vocab"][last] = last_id
    path.write_text(json.dumps(values))
    recipe = toy(base, "rows")
    tokenizer, _ = load_tokenizer(recipe)
    template = get_template("dolly-ko")
    if last_id == 700:
        assert add_template_tokens(tokenizer, template, recipe, 640) == tuple(range(640, 701))
        return
    with pytest.raises(BaseError, match=r"ids up to 2,000, the model has 640 rows.*resize"):
        add_template_tokens(tokenizer, template, recipe, 640)


def test_qlora_without_a_gpu_is_refused(llama: Path) -> None:
    """Four-bit weights need a GPU, and the error says what works without."""
    recipe = toy(llama, "rows", method="qlora")
    with pytest.raises(RecipeError, match='"qlora" needs a GPU; on a CPU use "lora"'):
        model.check_method(recipe, CPU)


@pytest.mark.parametrize(
    ("strategy", "machine", "said"),
    [
        ("fsdp", CPU, '"fsdp" needs GPUs'),
        ("fsdp", GPU, "torchrun --nproc-per-node 2"),
        ("none", replace(GPU, names=("A100",) * 4), "torchrun --nproc-per-node 4"),
    ],
)
def test_processes_that_do_not_fit_are_refused(
    llama: Path, tmp_path: Path, strategy: str, machine: Hardware, said: str
) -> None:
    """Sharding on CPUs, and several GPUs in one process, would silently be something else."""
    recipe = toy(llama, "rows", distributed__strategy=strategy)
    steps = make_schedule(recipe, 8, validation=False, hardware=CPU)
    with pytest.raises(RecipeError, match=said):
        arguments(recipe, steps, "fp32", machine, tmp_path)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["no-such-recipe", "--out", "o"], 1, "neither a file nor a built-in recipe"),
        (["{recipe}"], 2, "--out DIR"),
        (["{recipe}", "--out", "o", "--set", "epochs"], 2, "write KEY=VALUE"),
        (["{recipe}", "--out", "o", "--set", "train.epoch=1"], 1, "train.epoch: there is no such key"),
        (["{recipe}", "--out", "o", "--set", "train.epochs=-1"], 1, "train.epochs: Input should"),
        (["{recipe}", "--out", "o", "--set", "template=dolly-xx"], 1, "no template 'dolly-xx'"),
        (["{recipe}", "--out", "o", "--set", "template=tokenizer"], 1, "has no chat template"),
        (["{recipe}", "--out", "o", "--set", "data.max_length=4096"], 1, "data.max_length: 4096"),
        (["{recipe}", "--out", "o", "--set", "base=/nowhere"], 1, "base /nowhere: no such"),
        (["{recipe}", "--out", "o", "--set", "data.train={bad}"], 1, "bad.jsonl:2"),
        (["{recipe}", "--out", "o", "--set", "data.train=3"], 1,
         """--set data.train: Input should be a valid list; for example --set 'data.train=["one", "two"]'"""),
        (["{recipe}", "--out", "o", "--set", "train.batch_size=x"], 1, "for example --set train.batch_size=4"),
        (["{recipe}", "--out", "o", "--set", "train.eval_steps=x"], 1, "for example --set train.eval_steps=8"),
        (["{recipe}", "--out", "o", "--set", "data.train={raw}"], 1,
         "raw.json:1: neither a Dolly row"),
        (["{recipe}", "--out", "o", "--set", "data.train={raw}"], 1, "`kodolly convert {raw} --out rows`"),
        (["{recipe}", "--out", "o", "--set", "data.train={array}"], 1, "`kodolly convert {array} --out rows`"),
        (["{faulty}", "--out", "o"], 1, "faulty.toml:4: train.epochs: Input should be greater than 0"),
        (["{faulty}", "--out", "o"], 1, "faulty.toml:5: train.epoch: there is no such key"),
        (["{cut}", "--out", "o"], 1, "cut.toml:2: "),
        (["{long}", "--out", "o"], 1, "long.toml:5: data.max_length: 4096 tokens are more"),
    ],
)  # fmt: skip
def test_bad_input_names_its_place(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], status: int, said: str,
) -> None:  # fmt: skip
    """Errors name the flag, the key, or file and line; the status is 1, or 2 for bad usage."""
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "a", "context": "", "response": "b"}\n{"instruction": 3}\n')
    recipe = tmp_path / "my.toml"
    rows = rows_file(tmp_path)
    base = tmp_path / "base"
    shutil.copytree(llama, base, ignore=shutil.ignore_patterns("chat_template.jinja"))
    recipe.write_text(f'name = "my"\nbase = "{base}"\n[data]\ntrain = ["{rows}"]\n')
    (tmp_path / "raw.json").write_text('{"version": "KorQuAD_v1.0_dev", "data": []}\n')
    (tmp_path / "array.json").write_text(
        '[\n  {"instruction": "a", "input": "", "output": "b"}\n]\n'
    )
    (tmp_path / "faulty.toml").write_text(
        'name = "my"\nbase = "b"\n[train]\nepochs = -1\nepoch = 2\n'
    )
    (tmp_path / "cut.toml").write_text('name = "my"\nbase = \n')
    (tmp_path / "long.toml").write_text(recipe.read_text() + "max_length = 4096\n")
    files = {
        name: tmp_path / f"{name}{suffix}"
        for name, suffix in {
            "raw": ".json", "array": ".json", "faulty": ".toml", "cut": ".toml", "long": ".toml",
        }.items()
    }  # fmt: skip
    files |= {"recipe": recipe, "bad": bad}
    argv, said = [word.format(**files) for word in words], said.replace("{raw}", str(files["raw"]))
    said = said.replace("{array}", str(files["array"]))
    if words == ["{recipe}"]:  # argparse's
        with pytest.raises(SystemExit, match="2"):
            cli.main(argv)
    else:
        assert cli.main(argv) == status
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "fault",
    ["data.train=no.jsonl", "base=./nowhere", "base=.kodolly/models/tiny-llama", "template=none"],
)
def test_what_is_missing_is_noticed_before_the_slow_start(tmp_path: Path, fault: str) -> None:
    """A file of rows, a base or a template that is not there ends the command before torch is imported."""
    code = (
        "import sys; from kodolly_adapters.train.cli import main; assert main(sys.argv[1:]) == 1; "
        "assert not {'torch', 'transformers', 'trl'} & set(sys.modules)"
    )
    rows = rows_file(tmp_path)
    words = ["tiny-neox-lora", "--out", "o", "--set", f"data.train={rows}", "--set", fault]
    subprocess.run([sys.executable, "-c", code, *words], check=True, timeout=300, cwd=tmp_path)


def test_a_dry_run_says_what_would_happen(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are prepared and counted, steps planned, and nothing is written."""
    recipe = tmp_path / "my.toml"
    rows = rows_file(tmp_path)
    recipe.write_text(f'name = "my"\nbase = "{llama}"\n[data]\ntrain = ["{rows}"]\n')
    before = sorted(tmp_path.iterdir())
    assert cli.main([str(recipe), "--dry-run", "--set", "train.max_steps=7"]) == 0
    said = capsys.readouterr().out
    assert "steps        7 of 32 sequences" in said
    assert "kept" in said
    assert sorted(tmp_path.iterdir()) == before


def test_built_in_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """--list names them, one a line."""
    assert cli.main(["--list"]) == 0
    assert "polyglot-ko-5.8b-lora" in capsys.readouterr().out.splitlines()
