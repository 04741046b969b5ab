"""The house keeps its shape: roots are no packages, imports flow down, files keep one idea."""

import ast
import importlib
import platform
import re
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "kodolly": ROOT / "platform",
    "kodolly_templates": ROOT / "conversation_templates",
    "kodolly_adapters": ROOT / "adapters",
}
SOURCES = [file for room in ROOMS.values() for file in room.rglob("*.py")]
FOLDERS = sorted({file.parent for file in SOURCES})
MAX_LINES = 500
MAX_FILES = 16  # of a folder, its __init__.py aside


def test_platform_is_the_standard_librarys() -> None:
    """The folder platform/ does not hide the standard library's module of that name."""
    assert Path(platform.__file__).parent == Path(sysconfig.get_path("stdlib"))


@pytest.mark.parametrize("room", ROOMS.values(), ids=ROOMS)
def test_roots_hold_no_python_files(room: Path) -> None:
    """A source root holds packages only: a file in it would shadow other people's modules."""
    assert list(room.glob("*.py")) == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_folder_can_be_taken_in_at_a_glance(folder: Path) -> None:
    """No source folder holds more than 16 modules."""
    modules = [file for file in folder.glob("*.py") if file.name != "__init__.py"]
    assert len(modules) <= MAX_FILES


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: str(f.relative_to(ROOT)))
def test_files_keep_one_idea(file: Path) -> None:
    """No source file is longer than 500 lines, holds a global statement or lacks a docstring."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)

    assert len(text.splitlines()) <= MAX_LINES
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)]
    assert ast.get_docstring(tree), "say in a line what this file is for"


def test_the_error_tree_is_drawn_whole() -> None:
    """Every error class stands in the tree at the head of errors.py, and nothing else does."""
    errors = importlib.import_module("kodolly.errors")
    drawn = set(re.findall(r"^[ │├└─]*([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE)) - {"Every"}
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.KodollyError)
    }

    assert classes == drawn


def test_nothing_here_names_this_machine() -> None:
    """No tracked text holds a path of the machine it was written on."""
    marker = str(ROOT.parent) + "/"
    files = [*SOURCES, *ROOT.glob("*.md"), *ROOT.glob("*.toml"), *(ROOT / "docs").rglob("*.md")]

    assert [f for f in files if marker in f.read_text(encoding="utf-8")] == []
