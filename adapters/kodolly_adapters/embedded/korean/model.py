"""From the committed base and adapter to a model directory, by `kodolly merge`."""

from __future__ import annotations

import json
import shutil
import tempfile
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from kodolly_adapters.embedded.korean import NAME
from kodolly_adapters.embedded.place import CARD
from kodolly_adapters.errors import FetchError

TEMPLATE = "dolly-ko"
NOTICES = ("NOTICE", "LICENSE")


def place_of(part: str) -> Path:
    """The committed folder or file called `part`: base, adapter, figures.json ..."""
    return Path(str(resources.files(__package__).joinpath(part)))


def build(fresh: Path) -> None:
    """Fill the empty directory `fresh` with the merged model. Raises FetchError.

    Weights are float32: a CPU computes in it anyway, and nothing of the adapter is rounded away.
    """
    from kodolly_adapters.errors import UserError
    from kodolly_adapters.merge.run import merge

    with tempfile.TemporaryDirectory(prefix=".merge-", dir=fresh.parent) as scratch:
        merged = Path(scratch) / NAME
        try:
            # Verified against PEFT where it was made; the tests do it again.
            merge(
                place_of("base"), place_of("adapter"), merged, dtype="fp32", check=False, quiet=True
            )
        except UserError as error:
            raise FetchError(f"the committed model cannot be merged: {error}") from None
        for path in sorted(merged.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                shutil.move(path, fresh / path.name)
    for name in NOTICES:
        shutil.copyfile(place_of(name), fresh / name)
    _write_card(fresh / CARD)


def _write_card(path: Path) -> None:
    card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    figures = json.loads(place_of("figures.json").read_text(encoding="utf-8"))
    card |= {
        "name": NAME,
        "template": TEMPLATE,
        "license": "Apache-2.0",
        "created_by": "kodolly fetch",
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "metrics": {key: value for key, value in figures.items() if not key.endswith("answers")},
    }
    path.write_text(json.dumps(card, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
