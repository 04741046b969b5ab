"""The Korean demonstration model: its rows, its base, and the measurement of its answers."""

from pathlib import Path

EXAMPLE = Path(__file__).resolve().parent.parent
DATA = EXAMPLE / "data"
TEMPLATE = "dolly-ko"
