"""What a model card says about serving, and what a worker registers of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.tiny_encoder import make_tiny_encoder
from support.tiny_models import make_tiny_llama
from support.tool_models import TOOLS_TEMPLATE

from kodolly.errors import SettingsError
from kodolly.http.client import new_client
from kodolly.protocol.wire import Extension
from kodolly.settings import WorkerSettings
from kodolly.worker.app import Worker
from kodolly.worker.model import describe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")
    (directory / "chat_template.jinja").write_text(TOOLS_TEMPLATE)
    return directory


def write(base: Path, **fields: Any) -> None:
    (base / "model_card.json").write_text(json.dumps({"name": "ko58"} | fields))


async def announced(base: Path, tmp_path: Path, **settings: Any) -> Extension:
    """What a worker of this model tells the controllers."""
    worker = Worker(WorkerSettings(model=str(base), **settings), tmp_path)
    async with new_client() as client:
        return worker.agent(worker.describe([]), None, client, client).announcement.extension


async def test_a_card_s_words_are_registered(base: Path, tmp_path: Path) -> None:
    """Defaults, owner and aliases; those of the operator are added."""
    write(base, defaults={"temperature": 0.5, "max_tokens": 99}, aliases=["gpt-ko"], owner="lab")
    extension = await announced(base, tmp_path, model_aliases=("ours", "gpt-ko"))
    assert extension.aliases == {"gpt-ko": "ko58", "ours": "ko58"}
    assert extension.owner == "lab"
    assert extension.defaults is not None
    assert extension.defaults.model_dump(exclude_none=True) == {
        "temperature": 0.5, "max_tokens": 99,
    }  # fmt: skip


async def test_capabilities_are_those_of_engine_and_template(base: Path, tmp_path: Path) -> None:
    """Tools need a parser; `none` switches them off."""
    write(base)
    full = ["chat", "completions", "tools", "structured_outputs"]
    assert (await announced(base, tmp_path, engine="vllm")).capabilities == full
    without = await announced(base, tmp_path, engine="vllm", tool_parser="none")
    assert without.capabilities == ["chat", "completions", "structured_outputs"]
    plain = await announced(base, tmp_path, engine="vllm", conv_template="dolly-ko")
    assert plain.capabilities == ["chat", "completions", "structured_outputs"]
    vectors = make_tiny_encoder(tmp_path / "vectors")
    assert (await announced(vectors, tmp_path)).capabilities == ["embeddings"]


def test_a_card_names_parsers(base: Path) -> None:
    """Its word is taken before the table's, the operator's before the card's."""
    write(base, tool_parser="xlam", reasoning_parser="qwen3")
    model = describe(str(base), None, None)
    unset = {"tool": None, "reasoning": None}
    assert (model.parsers(unset).tool, model.parsers(unset).reasoning) == ("xlam", "qwen3")
    assert model.parsers(unset | {"tool": "none"}).tool is None
    write(base)
    assert describe(str(base), None, None).parsers(unset).tool == "hermes"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"defaults": {"temperature": 3}}, "model_card.json: defaults.temperature"),
        ({"defaults": {"stop": ["x"]}}, "model_card.json: defaults.stop"),
        ({"aliases": "gpt"}, "model_card.json: aliases"),
        ({"aliases": ["ko58"]}, "'ko58' is served under that name already"),
        ({"tool_parser": 5}, "model_card.json: tool_parser"),
    ],
)
async def test_a_bad_card_is_named(
    base: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    """With its file and the field."""
    write(base, **fields)
    with pytest.raises(SettingsError, match=message):
        await announced(base, tmp_path)


def test_a_parser_is_for_vllm(base: Path, tmp_path: Path) -> None:
    """Another engine would drop it without a word."""
    write(base)
    worker = Worker(WorkerSettings(model=str(base), tool_parser="hermes"), tmp_path)
    with pytest.raises(SettingsError, match="--tool-parser: is for the vllm engine"):
        worker.command(worker.describe([]))


@pytest.mark.parametrize(("runner", "pooling"), [("auto", True), ("generate", False)])
def test_a_directory_of_sentence_transformers_makes_embeddings(
    tmp_path: Path, runner: str, pooling: bool
) -> None:
    """Unless the operator says otherwise."""
    assert describe(str(make_tiny_encoder(tmp_path / "m")), None, None, runner).pooling == pooling
