"""benchmarks/clients: the table that a page gets."""

import pytest

from benchmarks.clients.report import BEGIN, END, with_table

TITLES = {"a": "A", "b": "B", "never-run": "C"}
RESULTS: dict[str, dict[str, dict[str, str | None]]] = {
    "a": {"openai": {"chat": None, "parse_it": "Error: 400 | no `json` 127.0.0.1:2345"}},
    "b": {"openai": {"chat": None, "parse_it": "Error: 400 | no `json` 127.0.0.1:9999"}},
}


def test_each_flow_is_a_row_and_each_error_one_footnote() -> None:
    """A server that was not run has no column; the rest of the page stays."""
    page = with_table(f"before\n{BEGIN}\nold\n{END}\nafter\n", TITLES, RESULTS)

    assert page.startswith("before\n")
    assert page.endswith("\nafter\n")
    assert "old" not in page
    assert "| openai | chat | ok | ok |" in page
    assert "| openai | parse it | fails (1) | fails (1) |" in page
    assert "| | **works, of 2** | 1 | 1 |" in page
    assert page.count("1. `Error: 400 / no 'json' ...`") == 1


def test_a_page_without_its_marks_is_refused() -> None:
    """Nothing is written over somebody's words."""
    with pytest.raises(ValueError, match="the page has no"):
        with_table("a page", TITLES, RESULTS)
