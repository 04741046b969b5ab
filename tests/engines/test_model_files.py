"""Broken model files: one sentence that names the file, whoever reads it first."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kodolly.engines.model_files import check_model_files, read_object
from kodolly.errors import SettingsError
from kodolly.worker.model import describe

DEEP = "[" * 100_000
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)


def write(directory: Path, name: str, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    (directory / name).write_bytes(data)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory whose files are right, as far as they are read here."""
    directory = tmp_path / "model"
    directory.mkdir()
    write(directory, "config.json", '{"model_type": "llama", "max_position_embeddings": 64}')
    write(
        directory, "tokenizer.json", '{"added_tokens": [{"content": "<|end|>", "special": true}]}'
    )
    write(directory, "tokenizer_config.json", '{"eos_token": "<|end|>"}')
    write(directory, "model.safetensors", WEIGHTS)
    return directory


BROKEN: list[tuple[str, str | bytes, str]] = [
    ("config.json", DEEP, "nested too deeply"),
    ("config.json", "[]", "a JSON object is expected, not list"),
    ("config.json", "null", "a JSON object is expected"),
    ("config.json", '{"model_type": "lla', "not JSON"),
    ("config.json", b"\xff\xfe", "not JSON"),
    ("config.json", "", "not JSON"),
    ("config.json", '{"max_position_embeddings": "many"}', "max_position_embeddings must be a number"),
    ("tokenizer.json", '{"added_tokens": ' + DEEP, "nested too deeply"),
    ("tokenizer.json", "[]", "a JSON object is expected"),
    ("tokenizer.json", '{"added_tokens": 7}', "tokens must be a list or an object, not int"),
    ("tokenizer.json", '{"added_tokens": ["x"]}', "an added token is no JSON object"),
    ("tokenizer_config.json", '{"a": ', "not JSON"),
    ("tokenizer_config.json", '{"added_tokens_decoder": "x"}', "tokens must be a list"),
    ("special_tokens_map.json", "[]", "a JSON object is expected"),
    ("generation_config.json", DEEP, "nested too deeply"),
    ("model_card.json", "7", "a JSON object is expected"),
    ("model.safetensors", b"", "no safetensors file"),
    ("model.safetensors", WEIGHTS[:-4], "bytes where its header tells"),
    ("model.safetensors", WEIGHTS[:20], "no safetensors file"),
    ("model.safetensors", struct.pack("<Q", 100_000) + DEEP.encode(), "nested too deeply"),
    ("model.safetensors", struct.pack("<Q", 2) + b"[]", "no safetensors file"),
    ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "no safetensors file"),
    ("model.safetensors.index.json", "[]", "cannot be read"),
    ("model.safetensors.index.json", DEEP, "cannot be read"),
    ("model.safetensors.index.json", '{"weight_map": {"w": "gone.safetensors"}}', "No such file"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_file_is_a_sentence_with_its_name(
    name: str, content: str | bytes, message: str, model: Path
) -> None:
    """Nested, empty, cut short, of another kind: SettingsError before any engine is started."""
    describe(str(model), None, None)
    write(model, name, content)
    with pytest.raises(SettingsError) as caught:
        describe(str(model), None, None)
    assert message in str(caught.value)
    assert name.removesuffix(".index.json") in str(caught.value) or "gone" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_folder_without_config_or_a_file_is_no_model(tmp_path: Path) -> None:
    """Both are told by name."""
    with pytest.raises(SettingsError, match=r"has no config\.json; it is no model directory"):
        check_model_files(tmp_path)
    with pytest.raises(SettingsError, match="no directory"):
        describe(str(tmp_path / "gone"), None, None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_told(model: Path) -> None:
    """As in a container whose user is not the files' owner."""
    (model / "config.json").chmod(0)
    with pytest.raises(SettingsError, match=r"config\.json: cannot be read: Permission denied"):
        read_object(model / "config.json")


def test_a_folder_in_a_files_place_is_told(model: Path) -> None:
    """A read that fails is no traceback."""
    (model / "generation_config.json").mkdir()
    with pytest.raises(SettingsError, match=r"generation_config\.json: cannot be read: Is a dir"):
        check_model_files(model)


COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "worker": lambda model: ["kodolly", "worker", "--model", str(model)],
    "up": lambda model: ["kodolly", "up", "--model", str(model), "--home", str(model.parent / "h")],
    "engine": lambda model: ["kodolly.engines.transformers", "--model", str(model)],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_process_ends_at_once_with_that_sentence(command: str, model: Path) -> None:
    """No traceback, no second try: a failure for whoever started it."""
    write(model, "tokenizer.json", DEEP)
    done = subprocess.run(
        [sys.executable, "-m", *COMMANDS[command](model)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=model.parent,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert f"{model / 'tokenizer.json'}: nested too deeply to be read" in lines[0]
