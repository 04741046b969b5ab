"""docs/failures.md names a test for every failure, and each of them exists."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "failures.md"
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def test_every_test_that_the_page_names_exists() -> None:
    """A test that is renamed or removed takes its row's promise with it."""
    named = NAMED.findall(PAGE.read_text(encoding="utf-8"))
    assert named
    missing = [f"{file}::{test}" for file, test in named if test not in names_in(TESTS / file)]
    assert missing == []


def names_in(file: Path) -> set[str]:
    """The names of the tests in a file, those in classes too; none if there is no such file."""
    if not file.is_file():
        return set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {each.name for each in ast.walk(tree) if isinstance(each, functions)}
