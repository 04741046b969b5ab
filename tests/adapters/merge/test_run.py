"""A merge as people run it: the command, its files, a kill in the middle, and the answers that come out."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.merge_cases import IDS, NEW, TARGETS, VARIANTS, load, make_adapter, verdict

from kodolly_adapters.errors import OutputError
from kodolly_adapters.files import locked
from kodolly_adapters.merge import cli
from kodolly_adapters.merge.greedy import generate_answers
from kodolly_adapters.merge.run import merge
from kodolly_adapters.safetensors_io import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore")

# Ends itself with SIGKILL when half of the bytes are written, in the middle of a file.
KILLED = """
import os, signal, sys
from pathlib import Path
from kodolly_adapters import terminal
from kodolly_adapters.merge import run
def count(self, size):
    self.done += size
    if self.done > self.total * float(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
terminal.Progress.add = count
run.merge(*(Path(p) for p in sys.argv[1:4]), check=False, quiet=True)
"""


@pytest.fixture(scope="module")
def adapter(bases: dict[tuple[str, bool], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA with trained token rows for the untied GPT-NeoX, which is sharded."""
    place = tmp_path_factory.mktemp("tokens")
    make_adapter(place, bases["neox", False], "neox", VARIANTS["tokens"], tied=False)
    return place


def _bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.stack
@pytest.mark.parametrize("share", [0.15, 0.95])
def test_a_killed_merge_run_again_gives_the_same_bytes(
    share: float, bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """kill -9 leaves no output directory; the second run keeps the finished files and ends the same."""
    base, out = bases["neox", False], tmp_path / "model"
    merge(base, adapter, tmp_path / "whole" / "model", check=False, quiet=True)
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(base), str(adapter), str(out), str(share)], check=False
    )
    assert child.returncode == -signal.SIGKILL
    assert not out.exists()
    part = tmp_path / "model.part"
    finished = json.loads((part / "merge.json").read_text())["shards"]
    times = {name: (part / name).stat().st_mtime_ns for name in finished}
    assert bool(finished) == (share > 0.5)
    merge(base, adapter, out, check=False, quiet=True)
    assert not part.exists()
    assert _bytes(out) == _bytes(tmp_path / "whole" / "model")
    assert times == {name: (out / name).stat().st_mtime_ns for name in finished}


def test_what_another_merge_left_is_not_taken_over(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """Files of an unfinished merge to another dtype do not end up in this one."""
    base, out = bases["neox", False], tmp_path / "model"
    merge(base, adapter, out, dtype="fp32", check=False, quiet=True)
    manifest = json.loads((out / "merge.json").read_text())
    (out / "merge.json").write_text(json.dumps(manifest | {"finished": False}))
    out.rename(tmp_path / "model.part")
    merge(base, adapter, out, check=False, quiet=True)
    merge(base, adapter, tmp_path / "whole" / "model", check=False, quiet=True)
    assert _bytes(out) == _bytes(tmp_path / "whole" / "model")


def test_two_merges_do_not_write_the_same_place(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """The second is refused."""
    (tmp_path / "model.part").mkdir()
    base, out = bases["neox", False], tmp_path / "model"
    lock = locked(tmp_path / "model.part", wait=False)
    with lock, pytest.raises(OutputError, match="another merge"):
        merge(base, adapter, out, check=False, quiet=True)


@pytest.mark.parametrize("arch", ["neox", "llama"])
def test_the_whole_chain_gives_the_same_greedy_tokens(
    arch: str, bases: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    """Base + adapter, the merged model loaded, and that saved and loaded again write the same tokens."""
    import torch
    from peft import PeftModel

    base, out = bases[arch, False], tmp_path / "merged"
    made = make_adapter(tmp_path / "adapter", base, arch, VARIANTS["tokens"], tied=False)
    merge(base, made.directory, out, dtype="fp32", check=False, quiet=True)
    again = tmp_path / "again"
    merged = load(out)
    merged.save_pretrained(str(again))
    models = [
        PeftModel.from_pretrained(load(base), str(made.directory)).eval(),
        merged,
        load(again),
    ]
    with torch.no_grad():
        texts = [generate_answers(model, IDS, 24).tokens.tolist() for model in models]
        assert texts[0] == texts[1] == texts[2]
        assert texts[0] != generate_answers(load(base), IDS, 24).tokens.tolist()


@pytest.mark.stack
def test_the_command_verifies_itself_and_writes_a_complete_directory(
    bases: dict[tuple[str, bool], Path],
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Weights, index in bytes, tokenizer, configs for old and new readers, card; readable by all."""
    out = tmp_path / "dolly"
    (adapter / "model_card.json").write_text(
        json.dumps({"template": "dolly-ko", "license": "MIT", "metrics": {"loss": 1.5}})
    )
    assert cli.main([str(bases["neox", False]), str(adapter), "--out", str(out)]) == 0
    output = capsys.readouterr()
    assert output.out == f"{out}\n"
    assert "are right to the last bit: what LoRA alone changes by PEFT's own merge" in output.err
    assert "greedy tokens" in output.err
    assert "rounding: its error (rms) is 0." in output.err
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in out.iterdir())
    read = {path.name: json.loads(path.read_text()) for path in out.glob("*.json")}
    config = read["config.json"]
    assert config["rotary_pct"] == config["rope_parameters"]["partial_rotary_factor"] == 0.5
    assert config["rotary_emb_base"] == config["rope_parameters"]["rope_theta"]
    assert read["generation_config.json"]["eos_token_id"] == 2
    assert read["tokenizer_config.json"]["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "### 명령어:" in (out / "chat_template.jinja").read_text()
    card = read["model_card.json"]
    assert (card["name"], card["template"], card["license"]) == ("dolly", "dolly-ko", "MIT")
    assert (card["architecture"], card["dtype"]) == ("GPTNeoXForCausalLM", "float16")
    assert card["metrics"] == {"loss": 1.5}
    index = read["model.safetensors.index.json"]
    sizes = [path.stat().st_size for path in out.glob("*.safetensors")]
    assert 0 < sum(sizes) - index["metadata"]["total_size"] < 10_000  # the headers
    assert cli.main([str(bases["neox", False]), str(adapter), "--out", str(out)]) == 0
    assert "was finished already" in capsys.readouterr().err
    (adapter / "model_card.json").unlink()


def test_a_damaged_output_does_not_pass_the_check(
    bases: dict[tuple[str, bool], Path], adapter: Path, tmp_path: Path
) -> None:
    """One wrong bit in a changed tensor is found by PEFT's merge, and the directory is not published."""
    base = bases["neox", False]
    merge(base, adapter, tmp_path / "model", check=False, quiet=True)
    spoiled = checkpoint(tmp_path / "model").tensors["gpt_neox.embed_in.weight"]
    with spoiled.path.open("r+b") as file:
        file.seek(spoiled.start + NEW[0] * spoiled.width * 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(OutputError, match="embed_in"):
        verdict(base, adapter, tmp_path / "model")


def test_a_base_of_another_config_than_recorded_is_refused(
    bases: dict[tuple[str, bool], Path],
    adapter: Path,
    tmp_path: Path,
) -> None:
    """The same shapes, but not the base that training wrote down."""
    copy = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    (copy / "model_card.json").write_text(json.dumps({"source": {"base_config_sha256": "0" * 64}}))
    base, out = bases["neox", False], tmp_path / "model"
    merge(base, copy, out, check=False, quiet=True)
    with pytest.raises(OutputError, match="another config"):
        verdict(base, copy, out)


def test_check_lists_exactly_what_changed(
    bases: dict[tuple[str, bool], Path],
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The LoRA's tensors with their rank, the embeddings with their rows, nothing else; and whose doing."""
    base, out = bases["neox", False], tmp_path / "model"
    changed = merge(base, adapter, out, check=False, quiet=True).changed
    check = [str(base), str(adapter), "--check", str(out), "--quiet"]

    assert cli.main([*check, "--json"]) == 0

    comparison = json.loads(capsys.readouterr().out)
    assert comparison["wrong"] == []
    assert len(comparison["differences"]) == changed == 2 * len(TARGETS["neox"]) + 2
    for difference in comparison["differences"]:
        ends = difference["name"] in ("gpt_neox.embed_in.weight", "embed_out.weight")
        assert difference["rank"] == (len(NEW) if ends else 4), difference["name"]
        assert difference["rows"] == (len(NEW) if ends else difference["shape"][0])
    assert cli.main(check) == 0
    assert "every tensor is what the adapter makes" in capsys.readouterr().out


def test_check_tells_another_adapters_merge(
    bases: dict[tuple[str, bool], Path],
    adapter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The exit status is 1 and the first tensors are named; without an adapter only differences are listed."""
    base, out = bases["neox", False], tmp_path / "model"
    merge(base, adapter, out, check=False, quiet=True)
    make_adapter(tmp_path / "other", base, "neox", VARIANTS["lora"], tied=False)

    assert cli.main([str(base), str(tmp_path / "other"), "--check", str(out), "--quiet"]) == 1
    report = capsys.readouterr().out
    assert "NOT what the adapter makes of the base: embed_out.weight, " in report
    assert cli.main([str(base), "--check", str(base), "--quiet"]) == 0
    assert "0 tensors differ" in capsys.readouterr().out


def test_merging_needs_an_adapter(
    bases: dict[tuple[str, bool], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """BASE alone is for --check."""
    with pytest.raises(SystemExit):
        cli.main([str(bases["neox", False]), "--out", str(tmp_path / "out")])
    assert "ADAPTER is needed" in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["neox", "llama"])
def test_an_adapter_without_a_tokenizer_gets_one_whose_names_are_in_the_vocabulary(
    arch: str, bases: dict[tuple[str, bool], Path], tmp_path: Path
) -> None:
    """Two files of the base name other ends, one of them unknown, and a padding without a row: ids of the model come out."""
    from transformers import AutoTokenizer

    base = tmp_path / "base"
    shutil.copytree(bases[arch, False], base)
    own = AutoTokenizer.from_pretrained(base)
    own.add_special_tokens({"pad_token": "[PAD]"})
    own.save_pretrained(base)
    marks = {"eos_token": "<eos>", "bos_token": {"content": "<|im_start|>"}}
    (base / "special_tokens_map.json").write_text(json.dumps(marks))
    make_adapter(tmp_path / "adapter", base, arch, VARIANTS["lora"], tied=False)

    result = merge(base, tmp_path / "adapter", tmp_path / "out", check=False, quiet=True)

    assert "eos_token '<eos>' is in no vocabulary; '<|im_end|>' is used" in result.notes
    config, generation = (
        json.loads((tmp_path / "out" / f"{name}.json").read_text())
        for name in ("config", "generation_config")
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.eos_token_id, tokenizer.bos_token) == (2, "<|im_start|>")
    assert (config["eos_token_id"], generation["eos_token_id"]) == (2, 2)
    assert (config["bos_token_id"], generation["bos_token_id"]) == (1, 1)
    assert config.get("pad_token_id") is None
    assert generation["pad_token_id"] < config["vocab_size"]
    load(tmp_path / "out")
