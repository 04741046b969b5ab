"""`kodolly train` end to end on tiny models: what is learned, what is written, what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_runs import MAKERS, losses_of, metrics_of, toy

from kodolly_adapters.errors import OutputError, RecipeError
from kodolly_adapters.terminal import Progress
from kodolly_adapters.train.estimate import memory, setup_of
from kodolly_adapters.train.recipe import Recipe
from kodolly_adapters.train.run import train
from kodolly_adapters.train.run_folder import CHECKPOINTS, finished_checkpoints, step_of
from kodolly_adapters.train.shapes import shapes_of
from kodolly_templates import load

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("no_curve")]

FAMILIES = tuple(MAKERS)


def open_model(directory: Path, adapter: Path | None = None) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32)
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


def answer(model: Any, directory: Path, question: str) -> str:
    """What the model writes to a question, by the chat template beside it, until it stops."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(directory))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    stops = json.loads((directory / "generation_config.json").read_text())["eos_token_id"]
    with torch.no_grad():
        ids = model.generate(
            input_ids=prompt, max_new_tokens=80, do_sample=False, eos_token_id=stops, pad_token_id=0
        )
    said = ids[0, prompt.shape[1] :]
    assert said[-1] in (stops if isinstance(stops, list) else [stops]), tokenizer.decode(said)
    return str(tokenizer.decode(said, skip_special_tokens=True))


@pytest.fixture(scope="module")
def adapters(
    place: Path, rows: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Recipe, Path]]:
    """(recipe, folder) of a finished LoRA run by family: only to read."""
    folder, runs = tmp_path_factory.mktemp("adapters"), {}
    for family in FAMILIES:
        recipe = toy(place / family, rows, train__max_steps=8, train__eval_steps=4)
        train(recipe, folder / family)
        runs[family] = (recipe, folder / family)
    return runs


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_learns_beside_the_base(
    place: Path, adapters: dict[str, tuple[Recipe, Path]], family: str
) -> None:
    """The loss falls, the adapter loads onto its base and changes what that says; every file is there."""
    _, out = adapters[family]
    metrics = json.loads((out / "run.json").read_text())["metrics"]
    losses = losses_of(out)
    assert losses[-1] < 0.8 * losses[0]
    assert metrics["steps"] == len(losses) == 8
    assert losses_of(out, "eval_loss")[-1] == metrics["eval_loss"]
    names = {path.name for path in (out / "adapter").iterdir()}
    assert names == {
        "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "generation_config.json", "model_card.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    modes = {path.stat().st_mode & 0o777 for path in (out / "adapter").iterdir()}
    assert modes == {0o644}
    card = json.loads((out / "adapter/model_card.json").read_text())
    assert (card["template"], card["base"]) == ("dolly-ko", str(place / family))
    run = json.loads((out / "run.json").read_text())
    assert run["state"] == "finished"
    assert run["outcomes"]["train"]["kept"]["rows"] == 24
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    prompt = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = open_model(place / family)(prompt).logits
        after = open_model(place / family, out / "adapter")(prompt).logits
    assert (before - after).abs().max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_full_training_learns_rows_by_heart(
    place: Path, rows: str, tmp_path: Path, family: str
) -> None:
    """The written model answers a row word for word and stops by itself."""
    out = tmp_path / "run"
    recipe = toy(
        place / family, rows, method="full", train__max_steps=60, train__eval_steps=60,
        data__packing=False,
    )  # fmt: skip
    train(recipe, out)
    model = open_model(out / "model")
    said = answer(model, out / "model", "대한민국의 수도는 어디입니까?")
    assert said.split("\n\n### 끝")[0] == "서울입니다."
    assert json.loads((out / "model/config.json").read_text())["use_cache"] is True


def test_the_written_config_keeps_the_bases_cache(place: Path, rows: str, tmp_path: Path) -> None:
    """Training turns the model's cache off; a base that had it off keeps it so, as others keep it on."""
    base = tmp_path / "base"
    shutil.copytree(place / "neox", base)
    config = json.loads((base / "config.json").read_text()) | {"use_cache": False}
    (base / "config.json").write_text(json.dumps(config))
    recipe = toy(
        base, rows, method="full", train__max_steps=1, train__eval_steps=1,
        train__gradient_checkpointing=True,
    )  # fmt: skip
    train(recipe, tmp_path / "run")
    written = json.loads((tmp_path / "run/model/config.json").read_text())
    assert written["use_cache"] is False


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_is_tuned_in_its_own_chat_template(
    place: Path, rows: str, tmp_path: Path, method: str
) -> None:
    """template = "tokenizer" takes the base's template, and what is written is served in it and stops."""
    recipe = toy(
        place / "neox", rows, template="tokenizer", method=method, data__packing=False,
        train__max_steps=60 if method == "full" else 1, train__eval_steps=60,
    )  # fmt: skip
    out = tmp_path / "run"
    train(recipe, out)
    folder = out / ("model" if method == "full" else "adapter")
    source = load(place / "neox", "tokenizer").jinja()
    assert (folder / "chat_template.jinja").read_text() == source
    assert json.loads((folder / "model_card.json").read_text())["template"] == "tokenizer"
    if method == "full":
        question = "대한민국의 수도는 어디입니까?"
        assert answer(open_model(folder), folder, question) == "서울입니다."


def test_random_start_learns_running_text(place: Path, tmp_path: Path) -> None:
    """Pre-training begins from noise, learns every token, and keeps rotary settings under both names."""
    text = tmp_path / "text.txt"
    text.write_text("서울에는 한강이 흐르고 다리가 여러 개 있습니다.\n" * 60, encoding="utf-8")
    recipe = toy(
        place / "neox", str(text), start="random", method="full", data__format="text", name="fresh",
        train__max_steps=4,
    )  # fmt: skip
    train(recipe, tmp_path / "run")
    losses = losses_of(tmp_path / "run")
    assert 5 < losses[0] < 9  # about log(640): nothing known
    assert losses[-1] < losses[0]
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert config["rotary_pct"] == config["rope_parameters"]["partial_rotary_factor"] == 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_new_tokens_are_trained_and_saved(
    place: Path, rows: str, tmp_path: Path, family: str
) -> None:
    """Input and output rows of the template's keys change, are in the adapter, and `### End` ends an answer."""
    out = tmp_path / "run"
    train(
        toy(
            place / family,
            rows,
            template="dolly-v2-special",
            train__max_steps=2,
            train__eval_steps=1,
        ),
        out,
    )
    tensors = load_file(out / "adapter/adapter_model.safetensors")
    trained = {name: t for name, t in tensors.items() if "trainable_tokens_delta" in name}
    begun = load_file(first_checkpoint(out) / "adapter_model.safetensors")
    assert len(trained) == 2
    for name, tensor in trained.items():
        assert tensor.shape == (3, 128)
        assert (tensor - begun[name]).abs().amax(dim=1).min() > 1e-4  # every row, not one of them
    assert not any("embed" in name and "token_adapter" not in name for name in tensors)
    config = json.loads((out / "adapter/adapter_config.json").read_text())
    assert {tuple(ids) for ids in config["trainable_token_indices"].values()} == {(640, 641, 642)}
    stops = json.loads((out / "adapter/generation_config.json").read_text())["eos_token_id"]
    assert stops[0] == 640
    card = json.loads((out / "adapter/model_card.json").read_text())
    assert card["new_tokens"] == ["### End", "### Instruction:", "### Response:\n"]


def first_checkpoint(out: Path) -> Path:
    found = finished_checkpoints(out / CHECKPOINTS)
    return found[0]


def test_untrained_rows_are_refused(place: Path, rows: str, tmp_path: Path) -> None:
    """A recipe that would leave the rows of new keys random is refused, naming them."""
    recipe = toy(place / "neox", rows, template="dolly-v2-special", lora__train_new_tokens=False)
    with pytest.raises(RecipeError, match=r"'### End', '### Instruction:'.*would stay random"):
        train(recipe, tmp_path / "run")


def test_a_kill_leaves_a_run_that_goes_on(place: Path, rows: str, tmp_path: Path) -> None:
    """After kill -9 and again: the losses and the weights of a run that was never disturbed."""
    recipe = toy(
        place / "neox", rows, method="full", train__max_steps=6, train__eval_steps=2,
        train__learning_rate=3e-4,
    )  # fmt: skip
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_after_a_checkpoint(recipe, killed)
    kept = finished_checkpoints(killed / CHECKPOINTS)
    half = killed / CHECKPOINTS / "checkpoint-7"  # as if killed while it was written
    half.mkdir()
    (half / "trainer_state.json").write_text("{")
    progress = Said()
    begun = json.loads((killed / "run.json").read_text())["started_at"]
    back_then = "2001-02-03T04:05:06+00:00"
    (killed / "run.json").write_text(
        (killed / "run.json").read_text().replace(begun, back_then), encoding="utf-8"
    )
    train(recipe, killed, progress)
    record = json.loads((killed / "run.json").read_text())
    assert record["started_at"] == back_then < begun <= record["finished_at"]
    train(recipe, whole)
    assert any("kept" in text for text in progress.texts)
    assert progress.texts[-1] == f"going on after step {step_of(kept[-1])}"
    assert losses_of(killed) == pytest.approx(losses_of(whole), abs=1e-6)
    assert losses_of(killed, "eval_loss") == pytest.approx(losses_of(whole, "eval_loss"), abs=1e-6)
    tokens = [record["num_tokens"] for record in metrics_of(killed) if "num_tokens" in record]
    assert tokens == sorted(tokens)
    ours, theirs = (load_file(out / "model/model.safetensors") for out in (killed, whole))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=0)


class Said(Progress):
    """Keeps what it is told to say."""

    def __init__(self) -> None:
        super().__init__("train", show=False)
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)


def kill_after_a_checkpoint(recipe: Recipe, out: Path) -> None:
    """Run the recipe by the real command and kill -9 it once a checkpoint is finished."""
    file = out.with_suffix(".json")
    file.write_text(recipe.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from kodolly_adapters.train.recipe import Recipe;"
        "from kodolly_adapters.train.run import train;"
        "train(Recipe.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))"
    )
    running = subprocess.Popen([sys.executable, "-c", code, str(file), str(out)])
    try:
        while not finished_checkpoints(out / CHECKPOINTS):
            assert running.poll() is None
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
    finally:
        running.kill()
        running.wait()
    assert json.loads((out / "run.json").read_text())["state"] == "unfinished"


def test_a_loss_that_is_no_number_ends_the_run(place: Path, rows: str, tmp_path: Path) -> None:
    """A rate far too high is named, instead of weights full of nan at the end."""
    recipe = toy(place / "neox", rows, method="full", train__learning_rate=1e30)
    with pytest.raises(RecipeError, match=r"train\.learning_rate: the loss is (nan|inf) at step"):
        train(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "qlora"}, '"qlora" needs a GPU'),
        ({"lora__targets": ["q_proj"]}, "no linear layer 'q_proj'"),
        ({"train__optimizer": "adam"}, "train.optimizer: transformers has no 'adam'; it has adamw_torch"),
        ({"train__optimizer": "lomo"}, r"train\.optimizer: .*lomo"),
    ],
)  # fmt: skip
def test_a_refused_recipe_put_right_has_the_same_folder(
    place: Path, rows: str, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    """What is refused before its first step leaves no run behind, and the next recipe trains in its folder."""
    out = tmp_path / "run"
    wanted: dict[str, Any] = {"train__max_steps": 1, "train__eval_steps": 1}
    with pytest.raises(RecipeError, match=said):
        train(toy(place / "neox", rows, **wanted, **changes), out)
    assert not (out / "run.json").exists()
    if said == "no linear layer 'q_proj'":  # refused last: all of the folder was there
        train(toy(place / "neox", rows, **wanted), out)
        assert (out / "adapter").is_dir()


def test_a_folder_holds_one_run(
    place: Path, rows: str, tmp_path: Path, adapters: dict[str, tuple[Recipe, Path]]
) -> None:
    """A finished run, another recipe's and a stranger's folder are refused, each saying why."""
    out = tmp_path / "run"
    recipe, finished = adapters["llama"]
    shutil.copytree(finished, out)
    with pytest.raises(OutputError, match="a finished run is in it"):
        train(recipe, out)
    state = json.loads((out / "run.json").read_text()) | {"state": "unfinished"}
    (out / "run.json").write_text(json.dumps(state))
    other = toy(place / "llama", rows, train__max_steps=8, train__eval_steps=4, lora__r=4)
    with pytest.raises(OutputError, match=r"recipe\.lora\.r: 8 there, 4 now"):
        train(other, out)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "letter.txt").write_text("mine")
    with pytest.raises(OutputError, match="there is something else in it"):
        train(recipe, stranger)


def bytes_of(states: Any) -> int:
    """Bytes of all tensors in nested dictionaries."""
    if isinstance(states, dict):
        return sum(map(bytes_of, states.values()))
    return states.nbytes if torch.is_tensor(states) else 0


def test_8_bit_states_learn_the_same_and_are_planned(
    place: Path, rows: str, tmp_path: Path
) -> None:
    """adamw_8bit gives AdamW's losses, and keeps the bytes of states that `kodolly plan` counts, within 5 %."""
    pytest.importorskip("bitsandbytes")
    wanted: dict[str, Any] = {"method": "full", "train__max_steps": 6, "train__eval_steps": 6}
    for name in ("adamw_torch", "adamw_8bit"):
        recipe = toy(place / "neox", rows, train__optimizer=name, **wanted)
        train(recipe, tmp_path / name)
        size = bytes_of(torch.load(first_checkpoint(tmp_path / name) / "optimizer.pt")["state"])
        shapes = shapes_of(json.loads((place / "neox/config.json").read_text()))
        assert memory(shapes, setup_of(recipe))["optimizer"] == pytest.approx(size, rel=0.05)
    ours, theirs = (losses_of(tmp_path / name) for name in ("adamw_8bit", "adamw_torch"))
    assert ours == pytest.approx(theirs, rel=0.01)
