"""A model by its hub name, offline: the hub's cache on this machine stands in for the hub."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub import running_hub
from support.tiny_models import make_tiny_llama

from kodolly.engines.transformers.hub import model_directory

REVISION = "0123456789012345678901234567890123456789"
LOOK = "from kodolly.engines.transformers.hub import *; import sys; print(model_directory(sys.argv[1]))"


def look(model: str, home: Path) -> subprocess.CompletedProcess[str]:
    """What the engine takes for the directory of `model`, with a hub's cache below `home`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", LOOK, model],
        env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_hub_id_is_found_in_the_cache(tmp_path: Path) -> None:
    """ORGANISATION/NAME is the directory to which the hub's own library downloaded it."""
    repository = tmp_path / "hub" / "models--org--tiny"
    snapshot = repository / "snapshots" / REVISION
    shutil.copytree(make_tiny_llama(tmp_path / "made"), snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)

    done = look("org/tiny", tmp_path)

    assert done.stdout.strip() == str(snapshot), done.stderr


def test_a_hub_id_is_downloaded_whole(tmp_path: Path) -> None:
    """Weights and all the rest come from the hub, once: the second look asks for no file."""
    with running_hub() as hub:
        made = make_tiny_llama(tmp_path / "made")
        commit = hub.push("org/tiny", made)
        env = os.environ | hub.environment(tmp_path / "home")
        env.pop("HF_HUB_OFFLINE", None)
        for _ in range(2):
            hub.requests.clear()
            done = subprocess.run(
                [sys.executable, "-c", LOOK, "org/tiny"],
                env=env, capture_output=True, text=True, timeout=300, check=True,
            )  # fmt: skip
        directory = Path(done.stdout.strip())
        assert directory.name == commit
        for path in made.iterdir():
            assert (directory / path.name).read_bytes() == path.read_bytes()
        assert not any("/resolve/" in path for path in hub.requests)


def test_a_hub_id_that_nobody_has_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A name that is neither here nor to be had ends in an error with the name in it."""
    done = look("org/nothing", tmp_path)

    assert done.returncode != 0
    assert (
        "EngineStartError: org/nothing: no such directory, nor can it be downloaded" in done.stderr
    )


@pytest.mark.parametrize("model", ["./org/name", "/models/name", "name", "a/b/c"])
def test_paths_are_no_hub_ids(model: str) -> None:
    """What is written as a path, or has not exactly one slash, is never looked up on the hub."""
    assert model_directory(model) == Path(model)


def test_a_folder_wins_over_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """models/mine is the folder of that name where there is one."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert model_directory("models/mine") == Path("models/mine")
