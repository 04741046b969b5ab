"""What cannot be merged is refused with its name and what to do, before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.merge_cases import VARIANTS, make_adapter

from kodolly_adapters.errors import AdapterError, BaseError, InputError, OutputError, UserError
from kodolly_adapters.merge.cli import main
from kodolly_adapters.merge.run import merge

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def plain(bases: dict[tuple[str, bool], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain LoRA adapter of the untied GPT-NeoX."""
    place = tmp_path_factory.mktemp("plain")
    make_adapter(place, bases["neox", False], "neox", VARIANTS["lora"], tied=False)
    return place


@pytest.fixture
def adapter(plain: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(plain, tmp_path / "adapter"))


def _edit(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _rewrite(adapter: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _refused(base: Path, adapter: Path, out: Path, kind: type[UserError] = AdapterError) -> str:
    with pytest.raises(kind) as caught:
        merge(base, adapter, out, check=False, quiet=True)
    assert not out.exists()
    return str(caught.value)


def test_an_adapter_tensor_that_matches_nothing_is_named(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """A LoRA of a layer that the base has not is refused, not dropped."""

    def extra(tensors: dict[str, Any]) -> None:
        for key in [key for key in tensors if ".layers.1.attention.dense." in key]:
            tensors[key.replace(".layers.1.", ".layers.7.")] = tensors[key].clone()

    _rewrite(adapter, extra)
    text = _refused(bases["neox", False], adapter, tmp_path / "out")
    assert "gpt_neox.layers.7.attention.dense.lora_A.weight" in text


def test_another_architecture_is_the_wrong_base(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """GPT-NeoX's adapter finds nothing in a LLaMA."""
    text = _refused(bases["llama", False], adapter, tmp_path / "out")
    assert "is that the base this adapter was trained on?" in text


def test_another_shape_is_the_wrong_base(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """A base of another width is refused with both shapes."""

    def narrow(tensors: dict[str, Any]) -> None:
        for key in [key for key in tensors if "attention.dense.lora_A" in key]:
            tensors[key] = tensors[key][:, :32].contiguous()

    _rewrite(adapter, narrow)
    text = _refused(bases["neox", False], adapter, tmp_path / "out")
    assert "make (64, 32)" in text
    assert "is (64, 64)" in text


def test_a_base_with_more_layers_is_the_wrong_base(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """All tensors match, but the base has target modules that the adapter knows nothing of."""
    _rewrite(adapter, lambda t: [t.pop(key) for key in list(t) if ".layers.1." in key])
    text = _refused(bases["neox", False], adapter, tmp_path / "out")
    assert "has nothing for gpt_neox.layers.1." in text


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fan_in_fan_out": True}, "Conv1D"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, "changed the base"),
        ({"peft_type": "IA3"}, "only LORA"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
        ({"from_the_future": {"x": 1}}, "from_the_future"),
        ({"use_dora": True}, "magnitude"),
        ({"r": 8}, "rank 4"),
    ],
)
def test_a_setting_that_cannot_be_merged_is_named(
    values: dict[str, Any],
    words: str,
    bases: dict[tuple[str, bool], Path],
    adapter: Path,
    tmp_path: Path,
) -> None:
    """Arithmetic that is unknown, or that began from another base, is never guessed."""
    _edit(adapter, **values)
    assert words in _refused(bases["neox", False], adapter, tmp_path / "out")


def test_pickles_are_refused_with_what_to_do(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """adapter_model.bin is not opened."""
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x04.")
    assert "safe_serialization" in _refused(bases["neox", False], adapter, tmp_path / "out")


def test_numbers_that_are_none_are_refused(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """A diverged adapter (NaN) does not become a model."""
    _rewrite(adapter, lambda t: t[min(t)].fill_(float("nan")))
    with pytest.raises(AdapterError, match="NaN"):
        merge(bases["neox", False], adapter, tmp_path / "out", check=False, quiet=True)
    assert not (tmp_path / "out").exists()


def test_values_beyond_fp16_are_refused(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """Overflow would be infinity in the file; the flag that helps is named."""
    _rewrite(adapter, lambda t: [value.mul_(1e4) for value in t.values()])
    with pytest.raises(AdapterError, match="--dtype bf16"):
        merge(bases["neox", False], adapter, tmp_path / "out", check=False, quiet=True)


def test_a_quantised_base_is_refused(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """Adding to quantised weights is no merge."""
    base = Path(shutil.copytree(bases["neox", False], tmp_path / "base"))
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"bits": 4}}))
    assert "is quantised" in _refused(base, adapter, tmp_path / "out", BaseError)


def test_a_cut_file_is_refused(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """A download that ended early is noticed from its header."""
    base = Path(shutil.copytree(bases["neox", False], tmp_path / "base"))
    file = min(base.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    assert "cut short" in _refused(base, adapter, tmp_path / "out", InputError)


def test_a_folder_with_something_else_is_left_alone(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """--force alone replaces it."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="--force"):
        merge(bases["neox", False], adapter, out, check=False, quiet=True)
    assert (out / "mine.txt").read_text() == "mine"
    merge(bases["neox", False], adapter, out, check=False, quiet=True, force=True)
    assert not (out / "mine.txt").exists()
    assert (out / "config.json").is_file()


def test_the_command_says_it_in_one_line_and_exits_1(
    bases: dict[tuple[str, bool], Path],
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No traceback for bad input."""
    (adapter / "adapter_config.json").unlink()
    code = main([str(bases["neox", False]), str(adapter), "--out", str(tmp_path / "out")])
    assert code == 1
    error = capsys.readouterr().err
    assert error.startswith("kodolly merge: ")
    assert "adapter_config.json" in error
    assert error.count("\n") == 1
