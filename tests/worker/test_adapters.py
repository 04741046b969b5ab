"""Adapters beside a base: what is refused before an engine starts, and the template they share."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.lora_files import (
    EMBEDDING,
    HIDDEN,
    LAYER,
    factors,
    tensor,
    write_adapter,
    write_base,
    write_json,
    write_tokenizer,
)
from support.processes import free_port

from kodolly.engines.lora import LoraAdapter
from kodolly.errors import SettingsError
from kodolly.options import resolve
from kodolly.settings import WorkerSettings
from kodolly.worker.adapters import read_adapters, with_adapters
from kodolly.worker.app import Worker
from kodolly.worker.model import ServedModel, describe
from kodolly_templates import Template, TokenizerTemplate

CHATML = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def read(base: Path, *named: str) -> tuple[LoraAdapter, ...]:
    return read_adapters(named, "vllm", str(base))


def served(base: Path, *named: str, template: str | None = None) -> ServedModel:
    """The base with adapters, as a worker describes it."""
    settings = WorkerSettings(
        model=str(base), engine="vllm", adapters=named, conv_template=template
    )
    return Worker(settings, base).describe([])


def test_flag_variable_and_file_say_the_same(tmp_path: Path) -> None:
    """Adapters come from a repeated flag, a variable with commas, or a list in the settings file."""
    file = tmp_path / "k.toml"
    file.write_text('[worker]\nadapters = ["a=x", "b=y"]\n')
    flags = ["--adapters", "a=x", "--adapters", "b=y"]
    variable = {"KODOLLY_WORKER_ADAPTERS": "a=x, b=y"}

    for argv, environ in ((flags, {}), ([], variable), (["--config", str(file)], {})):
        resolved = resolve(WorkerSettings, argv, prog="worker", environ=environ)
        assert resolved.settings.adapters == ("a=x", "b=y")


@pytest.mark.parametrize("shards", [False, True], ids=["one file", "shards"])
def test_an_adapter_of_this_base(tmp_path: Path, shards: bool) -> None:
    """Names and shapes that the base has pass; the largest rank of all layers is told."""
    base = write_base(tmp_path / "base", shards=shards)
    wide = factors(f"{LAYER}.mlp.dense_h_to_4h", (16, HIDDEN), 7)
    directory = write_adapter(
        tmp_path / "a", config={"rank_pattern": {"dense_h_to_4h": 7}}, tensors=wide
    )

    assert read(base, f"my/a:1={directory}") == (LoraAdapter("my/a:1", str(directory), 7),)


@pytest.mark.parametrize("text", ["a", "a=", "=x", "a b=x", "-a=x", ""])
def test_another_form_is_refused(base: Path, text: str) -> None:
    """Only NAME=DIR is understood."""
    with pytest.raises(SettingsError, match="NAME=DIR is expected"):
        read(base, text)


def test_a_name_names_one_model(base: Path, tmp_path: Path) -> None:
    """Neither two adapters nor an adapter and its base have one name."""
    directory = write_adapter(tmp_path / "a")
    with pytest.raises(SettingsError, match="'a' comes twice"):
        read(base, f"a={directory}", f"a={directory}")
    with pytest.raises(SettingsError, match="'base' is the base's own name"):
        served(base, f"base={directory}")


@pytest.mark.parametrize(
    ("engine", "cure"),
    [
        ("transformers", "use --engine vllm, or merge it with `kodolly merge"),
        ("openai", "--model-"),
    ],
)
def test_engines_that_add_none(base: Path, engine: str, cure: str) -> None:
    """Other engines refuse adapters and say what to do."""
    with pytest.raises(SettingsError, match=cure):
        read_adapters(["a=x"], engine, str(base))


def test_a_directory_that_is_no_adapter(base: Path, tmp_path: Path) -> None:
    """Each wrong directory is told for what it is."""
    with pytest.raises(SettingsError, match=r"--adapters: a=\S*nowhere: .* no such directory"):
        read(base, f"a={tmp_path / 'nowhere'}")
    with pytest.raises(SettingsError, match="a whole model, to be served with --model"):
        read(base, f"a={base}")
    run = tmp_path / "run"
    adapter = write_adapter(run / "adapter")
    with pytest.raises(SettingsError, match=f"{adapter} has one: is that the one meant"):
        read(base, f"a={run}")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(SettingsError, match="only safetensors are read"):
        read(base, f"a={adapter}")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_cut_file_is_found(base: Path, tmp_path: Path, keep: int) -> None:
    """An adapter file that lost its end is refused, wherever it was cut."""
    file = write_adapter(tmp_path / "a") / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(SettingsError, match=r"adapter_model\.safetensors (is no|has \d+ bytes)"):
        read(base, f"a={file.parent}")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["embed_out"]}, "modules_to_save"),
        ({"trainable_token_indices": {"embed_in": [31]}}, "trainable_token_indices"),
        ({"bias": "all"}, "biases"),
        ({"lora_bias": True}, "biases"),
        ({"init_lora_weights": "pissa"}, "changed base"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ],
    ids=["dora", "modules", "tokens", "bias", "lora bias", "pissa", "ia3"],
)
def test_more_than_lora_has_to_be_merged(
    base: Path, tmp_path: Path, config: dict[str, Any], reason: str
) -> None:
    """Kinds of adapter that vLLM cannot add are refused, with the command that helps."""
    directory = write_adapter(tmp_path / "a", config=config)
    with pytest.raises(SettingsError, match=f"{reason}.*merge it with `kodolly merge"):
        read(base, f"a={directory}")


@pytest.mark.parametrize(
    "tensors",
    [
        {f"base_model.model.{EMBEDDING}.weight": tensor(33, HIDDEN)},
        {f"base_model.model.{EMBEDDING}.lora_embedding_A": tensor(4, 32)},
        {f"base_model.model.{EMBEDDING}.token_adapter.trainable_tokens_delta": tensor(1, HIDDEN)},
        {f"base_model.model.{LAYER}.mlp.dense_h_to_4h.lora_magnitude_vector": tensor(16)},
        factors("lm_head", (32, HIDDEN)),
    ],
    ids=["vocabulary", "embedding", "token rows", "magnitude", "head"],
)
def test_a_tensor_beyond_lora_has_to_be_merged(
    base: Path, tmp_path: Path, tensors: dict[str, Any]
) -> None:
    """What the file holds decides, even where the config does not tell."""
    directory = write_adapter(tmp_path / "a", tensors=tensors)
    with pytest.raises(SettingsError, match="merge it with `kodolly merge"):
        read(base, f"a={directory}")


@pytest.mark.parametrize(
    ("module", "shape", "said"),
    [
        (f"{LAYER}.mlp.dense_h_to_4h", (32, HIDDEN), "as one of 32 x 8, but in .* it is 16 x 8"),
        ("gpt_neox.layers.9.mlp.dense_h_to_4h", (16, HIDDEN), "layers.9.* does not have"),
        ("model.layers.0.self_attn.q_proj", (HIDDEN, HIDDEN), "q_proj, which .* does not have"),
    ],
)
def test_another_bases_adapter(
    base: Path, tmp_path: Path, module: str, shape: tuple[int, int], said: str
) -> None:
    """A layer that the base has not, or has in another size, tells that the adapter is not its own."""
    directory = write_adapter(tmp_path / "a", tensors=factors(module, shape))
    with pytest.raises(SettingsError, match=said):
        read(base, f"a={directory}")


def test_config_and_weights_belong_together(base: Path, tmp_path: Path) -> None:
    """Matrices of a rank that the config does not name are refused, and so is half a pair."""
    directory = write_adapter(tmp_path / "a", config={"r": 16})
    with pytest.raises(SettingsError, match=r"lora_A of 4 x 8 .* says rank 16"):
        read(base, f"a={directory}")
    half = {f"base_model.model.{LAYER}.attention.dense.lora_A.weight": tensor(4, HIDDEN)}
    with pytest.raises(SettingsError, match=r"attention\.dense needs two matrices"):
        read(base, f"b={write_adapter(tmp_path / 'b', tensors=half)}")


def test_a_quantised_base_has_shapes_of_its_own(tmp_path: Path) -> None:
    """Packed weights are compared by name alone."""
    base = write_base(tmp_path / "base")
    packed = {f"{LAYER}.attention.query_key_value.qweight": tensor(1, 24)}
    packed[f"{LAYER}.mlp.dense_h_to_4h.qweight"] = tensor(1, 16)
    from safetensors.numpy import save_file

    save_file(packed, base / "model.safetensors")
    assert read(base, f"a={write_adapter(tmp_path / 'a')}")


def test_a_base_of_another_name_is_mentioned(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fitting shapes prove no identity: another name is logged, the same one in another place not."""
    for name, mentioned in (("org/base", False), ("/somewhere/base/", False), ("org/other", True)):
        caplog.clear()
        directory = write_adapter(tmp_path / "a", config={"base_model_name_or_path": name})
        assert read(base, f"a={directory}")
        assert ("was trained on" in caplog.text) is mentioned


def test_new_tokens_have_to_be_merged(base: Path, tmp_path: Path) -> None:
    """An adapter whose tokenizer grew is refused by its tokens: the engine has the base's alone."""
    directory = write_adapter(tmp_path / "a")
    write_tokenizer(base, "<|endoftext|>")
    write_tokenizer(directory, "<|endoftext|>")
    assert served(base, f"a={directory}").names == ("base", "a")
    write_tokenizer(directory, "<|endoftext|>", "### End")
    with pytest.raises(SettingsError, match=r"\(### End\).*merge it"):
        served(base, f"a={directory}")


@pytest.mark.parametrize(
    ("base_says", "adapter_says", "fits"),
    [
        ({}, {}, True),
        ({"eos_token_id": 2}, {}, True),
        ({"eos_token_id": 2}, {"eos_token_id": [2]}, True),
        ({"eos_token_id": [0, 2]}, {"eos_token_id": 2}, True),
        ({"eos_token_id": 0}, {"eos_token_id": 2}, False),
        ({"eos_token_id": 0}, {"eos_token_id": [0, 7]}, False),
        ({"eos_token_id": 0}, {"eos_token_id": 5}, True),
    ],
)
def test_another_end_has_to_be_merged(
    base: Path, tmp_path: Path, base_says: Any, adapter_says: Any, fits: bool
) -> None:
    """An adapter whose answers end at a token where the base goes on would never stop: refused."""
    directory = write_adapter(tmp_path / "a")
    write_tokenizer(base, "a", "b", "c", "d", "e", "</s>")
    write_json(base / "tokenizer_config.json", {"eos_token": {"content": "</s>"}})  # its id is 5
    write_json(base / "generation_config.json", base_says)
    write_json(directory / "generation_config.json", adapter_says)
    if fits:
        assert served(base, f"a={directory}")
        return
    with pytest.raises(SettingsError, match=r"ends its answers with token [27], .* or merge it"):
        served(base, f"a={directory}")


def test_the_adapters_template_serves_a_base_without_one(base: Path, tmp_path: Path) -> None:
    """Korean Dolly adapters over a plain base: their template, stop and guard are everybody's."""
    write_tokenizer(base, "<|endoftext|>")
    adapters = [
        f"{name}={write_adapter(tmp_path / name, template='dolly-ko')}" for name in ("a", "b")
    ]
    model = served(base, *adapters)

    assert model.names == ("base", "a", "b")
    assert isinstance(model.template, Template)
    assert model.template.name == "dolly-ko"
    assert model.stop
    assert {"### 응답:", "<|endoftext|>"} <= set(model.guard)
    file = model.write_chat_template(tmp_path)
    assert file is not None
    assert "### 명령어:" in file.read_text(encoding="utf-8")


def test_an_adapter_without_a_template_follows_the_base(tmp_path: Path) -> None:
    """No card, no chat template: the base's is used."""
    base = write_base(tmp_path / "base", template="koalpaca")
    model = served(base, f"a={write_adapter(tmp_path / 'a')}")
    assert model.template is not None
    assert model.template.name == "koalpaca"


def test_a_chat_template_beside_the_adapter(base: Path, tmp_path: Path) -> None:
    """One that trainers saved with the adapter reaches the engine, as the base has none."""
    directory = write_adapter(tmp_path / "a")
    (directory / "chat_template.jinja").write_text(CHATML)
    model = served(base, f"a={directory}")

    assert isinstance(model.template, TokenizerTemplate)
    file = model.write_chat_template(tmp_path)
    assert file is not None
    assert file.read_text() == CHATML


def test_one_chat_template_twice_is_no_conflict(base: Path, tmp_path: Path) -> None:
    """An adapter saved with its base's own chat template agrees with it."""
    directory = write_adapter(tmp_path / "a", template="tokenizer")
    for place in (base, directory):
        (place / "chat_template.jinja").write_text(CHATML)
    assert served(base, f"a={directory}").template == describe(str(base), None, None).template


def test_different_templates_are_refused_unless_one_is_chosen(base: Path, tmp_path: Path) -> None:
    """An engine has one chat template: the conflict is told, and --conv-template ends it."""
    (base / "chat_template.jinja").write_text(CHATML)
    dolly = f"a={write_adapter(tmp_path / 'a', template='dolly-ko')}"
    with pytest.raises(SettingsError, match=r"a was trained with the template dolly-ko, but base"):
        served(base, dolly)
    with pytest.raises(
        SettingsError, match="--conv-template, start another worker for a, or merge"
    ):
        served(base, dolly)
    model = served(base, dolly, template="dolly-ko")
    assert model.template is not None
    assert model.template.name == "dolly-ko"


def test_two_adapters_of_different_templates(base: Path, tmp_path: Path) -> None:
    """The adapters' own templates are compared with each other too."""
    named = [f"{t}={write_adapter(tmp_path / t, template=t)}" for t in ("dolly-ko", "koalpaca")]
    with pytest.raises(
        SettingsError, match=r"koalpaca was trained with .*, but dolly-ko is served"
    ):
        served(base, *named)


def test_an_unknown_template_is_told_by_its_card(base: Path, tmp_path: Path) -> None:
    """A card that names no template of ours is an error that names the card."""
    directory = write_adapter(tmp_path / "a", template="vicuna")
    with pytest.raises(SettingsError, match=r"model_card\.json: no template 'vicuna'"):
        served(base, f"a={directory}")


def test_a_hub_base_out_of_reach_is_left_to_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base that only the engine finds is taken as it is; the adapter's template is known."""
    monkeypatch.setattr("kodolly.worker.model.small_files", lambda _: None)
    directory = write_adapter(tmp_path / "a", template="dolly-ko")
    model = describe("org/base", None, None)
    model = with_adapters(model, read(Path("org/base"), f"a={directory}"), template_is_chosen=False)
    assert model.names == ("org/base", "a")
    assert model.template is not None


def test_the_command_ends_before_an_engine_starts(base: Path, tmp_path: Path) -> None:
    """`kodolly worker` and `kodolly up` exit with 1 and one line for an adapter that is not there."""
    write_json(tmp_path / "empty.json", {})
    for command in ("worker", "up"):
        port = "--port" if command == "worker" else "--worker-port"
        argv = [command, "--engine", "vllm", "--engine-python", "/nowhere", port, str(free_port())]
        argv += ["--model", str(base), "--adapters", f"a={tmp_path / 'gone'}"]
        if command == "up":
            for flag in ("--api-port", "--web-port", "--controller-port"):
                argv += [flag, str(free_port())]
        done = subprocess.run(
            [sys.executable, "-m", "kodolly", *argv],
            capture_output=True,
            check=False,
            cwd=tmp_path,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(f"kodolly {command}: --adapters: a={tmp_path / 'gone'}: ")
        assert done.stderr.count("\n") == 1
