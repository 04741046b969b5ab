"""docs/security.md: every promise names tests, and they exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [
    line.strip("|").split(" | ")
    for line in PAGE.partition("## Promises and their tests")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| Promise")
]


def names_in(file: Path) -> set[str]:
    """The test functions of a file, those in classes too."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def test_the_page_has_promises() -> None:
    """The table is where this test looks for it."""
    assert len(ROWS) >= 15


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip()[:60])
def test_each_promise_is_held_by_a_test_that_exists(row: list[str]) -> None:
    """A test that is renamed or deleted takes its promise with it, unless the page is mended."""
    assert len(row) == 2
    references = re.findall(r"`([^`]+)`", row[1])
    assert references, "no test is named"
    for reference in references:
        path, _, name = reference.partition("::")
        file = TESTS / path
        assert file.is_file(), reference
        assert not name or name in names_in(file), reference
