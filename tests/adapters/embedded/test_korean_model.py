"""The Korean model as `kodolly fetch` makes it: whole, small, under its notices, and it can talk."""

import json
import re
from pathlib import Path

import pytest

from kodolly_adapters.embedded import cli
from kodolly_adapters.embedded.korean import NAME, corpus, judge
from kodolly_adapters.embedded.korean.model import place_of
from kodolly_templates.catalogue import load

PACKAGE = place_of("base").parent
LIMIT = 25_000_000  # bytes committed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that `kodolly fetch --model kodolly-ko` makes."""
    out = tmp_path_factory.mktemp("models") / NAME
    assert cli.main(["--model", "kodolly-ko", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def talking(model: Path) -> judge.Judge:
    return judge.Judge(model)


def committed() -> list[Path]:
    found = [path for path in PACKAGE.rglob("*") if path.is_file()]
    return [path for path in found if "__pycache__" not in path.parts]


def test_it_greets_and_stops(talking: judge.Judge) -> None:
    """A greeting is answered by one, in Korean, and the answer ends by itself."""
    [(answer, stopped)] = talking.ask([{"instruction": "안녕하세요", "context": ""}])
    assert "안녕" in answer or "반갑" in answer
    assert judge.is_korean(answer)
    assert stopped


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("대한민국의 수도는 어디인가요?", "서울"),
        ("너는 누구야?", "KoDolly"),
        ("API는 몇 번 포트야?", "8000"),
        ("고마워", "천만"),
    ],
)
def test_it_answers_simple_questions(talking: judge.Judge, question: str, expected: str) -> None:
    """Questions of its own rows are answered as there, and the answer ends by itself."""
    [(answer, stopped)] = talking.ask([{"instruction": question, "context": ""}])
    assert expected in answer
    assert stopped


def test_it_talks_on(talking: judge.Judge) -> None:
    """A second question in the same conversation is answered too."""
    messages = [
        {"role": "user", "content": "안녕하세요"},
        {"role": "assistant", "content": "안녕하세요! 만나서 반갑습니다. 무엇을 도와드릴까요?"},
        {"role": "user", "content": "대한민국의 수도는 어디인가요?"},
    ]
    answer, stopped = talking.answer(messages)
    assert "서울" in answer
    assert stopped


def test_its_directory_is_whole(model: Path) -> None:
    """Weights, tokenizer, chat template, stop ids, card and notices are there, readable by others."""
    names = {path.name for path in model.iterdir()}
    assert names >= {
        "LICENSE",
        "NOTICE",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model_card.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in model.iterdir())
    card = json.loads((model / "model_card.json").read_text(encoding="utf-8"))
    assert (card["name"], card["template"]) == (NAME, "dolly-ko")
    assert card["created_by"] == "kodolly fetch"
    assert load(model).name == "dolly-ko"
    generation = json.loads((model / "generation_config.json").read_text(encoding="utf-8"))
    tokens = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert generation["eos_token_id"] in [
        t["id"] for t in tokens if t["content"] == "<|endoftext|>"
    ]
    # A client that names no temperature gets likely words: so small a model wanders when it draws.
    assert generation["temperature"] == 0.3


def test_it_is_made_once(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second fetch finds the finished directory."""
    before = (model / "model.safetensors").stat().st_mtime_ns
    assert cli.main(["--model", "kodolly-ko", "--out", str(model)]) == 0
    assert "was already there" in capsys.readouterr().err
    assert (model / "model.safetensors").stat().st_mtime_ns == before


def test_merged_answers_are_the_adapters(model: Path, talking: judge.Judge) -> None:
    """The merged weights give what the base with its adapter gives."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(place_of("base"), dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, place_of("adapter")).eval()
    merged = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.arange(100, 140)[None]
    with torch.inference_mode():
        difference = (tuned(input_ids=ids).logits - merged(input_ids=ids).logits).abs().max()
    assert float(difference) < 1e-3


def test_all_that_is_committed_is_small() -> None:
    """Data, weights, figures and pictures together stay under the limit."""
    assert sum(path.stat().st_size for path in committed()) < LIMIT


def test_notices_name_every_source() -> None:
    """MIT's whole notice for ChatbotData and the MPL for the help texts stand beside the weights."""
    notice = (PACKAGE / "NOTICE").read_text(encoding="utf-8")
    assert "ChatbotData" in notice
    assert "The above copyright notice and this permission notice" in notice
    assert "LibreOffice" in notice
    assert "Mozilla Public License" in notice
    assert "Apache License" in (PACKAGE / "LICENSE").read_text(encoding="utf-8")


def test_nothing_of_the_sources_is_committed() -> None:
    """No file but our rows, questions, prompts and figures holds running Korean text."""
    korean = {p.name for p in committed() if p.suffix in {".jsonl", ".csv", ".txt", ".parquet"}}
    assert korean == {
        "rows.jsonl",
        "phrasings.jsonl",
        "prompts.jsonl",
        "reading.jsonl",
        "blind.jsonl",
    }


def test_nothing_names_the_machine_it_was_made_on() -> None:
    """No committed text holds an absolute path."""
    for path in committed():
        if path.suffix in {".json", ".md", ".toml"} and path.name != "tokenizer.json":
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"[\"'\s](/tmp|/work|/home|/root)\b", text), path


def test_its_figures_are_those_of_its_answers() -> None:
    """The committed counts follow from the answers beside them, and the model card shows them."""
    figures = json.loads(place_of("figures.json").read_text(encoding="utf-8"))
    answers = figures["answers"]
    assert figures["prompts"] == len(answers) == len(judge.prompts())
    for check in ("korean", "stopped", "expected"):
        assert figures[check] == sum(answer[check] for answer in answers)
    held = [row for row in corpus.held_out_rows() if "source" not in row]
    assert figures["heldout_rows"] == len(held)
    blind = figures["blind_answers"]
    assert figures["blind"]["prompts"] == len(blind) == len(judge.prompts("blind"))
    assert figures["blind"]["expected"] == sum(answer["expected"] for answer in blind)
    card = (PACKAGE / "README.md").read_text(encoding="utf-8")
    assert str(figures["heldout_nats_per_character"]) in card
    assert f"{figures['all_three']} / {figures['prompts']}" in card
    assert f"{figures['blind']['all_three']} / {figures['blind']['prompts']}" in card
