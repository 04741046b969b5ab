"""Real Korean data and small odd inputs beside the project, where a machine has it; tests that need it skip elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = Path(os.environ.get("KODOLLY_SHARED_DATA", ROOT.parent / "shared" / "data"))
needs_shared_data = pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="no real data here: set KODOLLY_SHARED_DATA to its folder"
)
SHARED_CASES = ROOT.parent / "shared" / "cases"


def shared_cases(kind: str) -> list[Any]:
    """A parameter for every file of a kind of odd inputs; one that skips where there are none."""
    files = sorted((SHARED_CASES / kind).glob("*"))
    absent = pytest.param(None, marks=pytest.mark.skip(f"no {kind} here"), id="absent")
    return [pytest.param(path, id=path.stem) for path in files] or [absent]
