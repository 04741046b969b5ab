"""Bases by name: a folder, the embedded model, and the hub, whose commit is written down and used again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hub import Hub, running_hub
from support.tiny_models import make_tiny_llama
from support.tiny_runs import rows_file

from kodolly_adapters.bases import is_hub_id, locate
from kodolly_adapters.errors import BaseError

NAME = "org/tiny"
SERVED = """
import json, sys
from kodolly.worker.model import describe, with_tokenizer
model = with_tokenizer(describe(sys.argv[1], None, None), None)
print(json.dumps([model.name, model.path, model.guard, model.template and model.template.name]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


def run(hub: Hub, place: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A Python process in `place` that asks `hub`."""
    env = os.environ | hub.environment(place / "home") | {"OMP_NUM_THREADS": "1"}
    env.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        env=env, cwd=place, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_the_embedded_model_is_a_base_by_its_name() -> None:
    """No command has to be given first."""
    base = locate("kodolly-ko-8m")
    assert (base.folder / "model.safetensors").is_file()
    assert base.revision is None


@pytest.mark.parametrize("name", ["./org/name", "/org/name", "name", "a/b/c"])
def test_a_path_is_never_looked_up_on_the_hub(name: str) -> None:
    """What reads as a path, or has not exactly one slash, is a folder that is not there."""
    assert not is_hub_id(name)
    with pytest.raises(BaseError, match=f"base {name}: no such folder"):
        locate(name)


def test_a_fetched_base_that_is_missing_names_the_command() -> None:
    """The base of tiny-llama-full is one command away, which the error gives."""
    with pytest.raises(BaseError, match="`kodolly fetch --model tiny-llama` makes it"):
        locate(".kodolly/models/tiny-llama")


def test_a_worker_reads_template_and_guard_of_a_hub_id(hub: Hub, tmp_path: Path) -> None:
    """The small files are fetched for them, the weights are left to the engine, and the commit is logged."""
    commit = hub.push(NAME, make_tiny_llama(tmp_path / "tiny"))
    code = f"import logging; logging.basicConfig(level='INFO'){SERVED}"
    done = run(hub, tmp_path, "-c", code, NAME)
    name, path, guard, template = json.loads(done.stdout)
    assert (name, path, template) == (NAME, NAME, "tokenizer")
    assert "<|im_end|>" in guard
    assert f"revision {commit}" in done.stderr
    assert not any("safetensors" in path and "resolve" in path for path in hub.requests)


@pytest.mark.stack
def test_a_hub_base_is_trained_planned_and_merged_at_one_commit(hub: Hub, tmp_path: Path) -> None:
    """The commit is in run.json, the adapter's config and both cards; the merge takes it when `main` has moved on."""
    commit = hub.push(NAME, make_tiny_llama(tmp_path / "first"))
    recipe = tmp_path / "my.toml"
    recipe.write_text(
        f'name = "my"\nbase = "{NAME}"\ntemplate = "tokenizer"\n'
        f'[data]\ntrain = "{rows_file(tmp_path)}"\nmax_length = 256\nvalidation_share = 0.0\n'
        "[train]\nmax_steps = 2\nsave_steps = 2\nreport_to = []\n"
    )
    done = run(hub, tmp_path, "-m", "kodolly", "plan", recipe, "--json")
    assert json.loads(done.stdout)["base"]["origin"] == "the hub"
    done = run(hub, tmp_path, "-m", "kodolly", "train", recipe, "--out", "run")
    assert f"taking {NAME} from the hub" in done.stderr
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["decisive"]["base_revision"] == commit
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (NAME, commit)

    newer = hub.push(NAME, make_tiny_llama(tmp_path / "second", seed=1))
    done = run(hub, tmp_path, "-m", "kodolly", "merge", NAME, "run", "--out", "merged")
    assert "right to the last bit" in done.stderr
    card = json.loads((tmp_path / "merged/model_card.json").read_text())
    assert (card["base"], card["source"]["base_revision"]) == (NAME, commit)
    assert not any(newer in path for path in hub.requests)
