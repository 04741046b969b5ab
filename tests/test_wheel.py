"""The wheel holds everything that the code reads at run time, and nothing else of ours."""

import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import kodolly

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    "kodolly": ROOT / "platform",
    "kodolly_templates": ROOT / "conversation_templates",
    "kodolly_adapters": ROOT / "adapters",
}
BUILD = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-c", BUILD, str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=True)
    [file] = folder.glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.mark.parametrize("package", SOURCES)
def test_the_wheel_holds_every_file_of_a_package(wheel: zipfile.ZipFile, package: str) -> None:
    """Each tracked file below a package, code or data, is in the wheel, and no file else."""
    source = SOURCES[package]
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", package]
    done = subprocess.run(listing, cwd=source, capture_output=True, text=True, check=True)
    tracked = {name for name in done.stdout.splitlines() if (source / name).is_file()}

    assert {n for n in wheel.namelist() if n.startswith(f"{package}/")} == tracked


@pytest.mark.parametrize(
    "file",
    [
        *(f"{package}/py.typed" for package in SOURCES),
        "kodolly/web/style.css",
        "kodolly_adapters/convert/flags.toml",
        "kodolly_adapters/convert/cleaning/rules.toml",
        "kodolly_adapters/convert/cleaning/words.toml",
        "kodolly_adapters/convert/output/dataset_card.md.jinja",
        "kodolly_adapters/embedded/kodolly-ko-8m/model.safetensors",
        "kodolly_adapters/embedded/kodolly-ko-8m/tokenizer.json",
        "kodolly_adapters/recipes/polyglot-ko-5.8b-lora.toml",
        "kodolly_adapters/train/bases.toml",
        "kodolly_adapters/train/gpus.toml",
        "kodolly_adapters/train/plan.txt.jinja",
        "kodolly_templates/dolly-ko.toml",
    ],
)
def test_data_files_are_in_the_wheel(wheel: zipfile.ZipFile, file: str) -> None:
    """Data that commands read is there by name, should git and the wheel both lose it."""
    assert file in wheel.namelist()


def test_the_wheel_tells_version_and_extras(wheel: zipfile.ZipFile) -> None:
    """The version is the package's own; `kodolly[all]` brings what one machine can use."""
    name = f"kodolly-{kodolly.__version__}.dist-info/METADATA"
    metadata = message_from_bytes(wheel.read(name))

    assert metadata["Version"] == kodolly.__version__
    assert {"all", "data", "train", "transformers", "web"} <= set(
        metadata.get_all("Provides-Extra", [])
    )
