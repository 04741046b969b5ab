"""The converter beside a plain script, Hugging Face datasets and bare parsers, in one interleaved run.

    python -m benchmarks.convert.run [--corpus DIR] [--rounds 3]    the full size
    python -m benchmarks.convert.run --quick                        a hundredth of it, under a minute

Prints a Markdown table; writes it, a JSON file and a picture to benchmarks/convert/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.convert import corpus, report
from benchmarks.convert.contenders import ALL_CORES, Contender, contenders
from benchmarks.convert.measure import RunFailed, measure, warm
from benchmarks.convert.report import Result

RESULTS = Path(__file__).with_name("results")
LIBRARIES = (
    "orjson",
    "msgspec",
    "pysimdjson",
    "ijson",
    "resiliparse",
    "beautifulsoup4",
    "datasets",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="one round at scale 0.01")
    parser.add_argument("--scale", type=float, help="of the study's size (default 1, quick 0.01)")
    parser.add_argument(
        "--corpus", type=Path, help="where it is or shall be made; default: a new one"
    )
    parser.add_argument("--rounds", type=int, help="default 3, quick 1")
    parser.add_argument("--only", help="names of contenders, with commas")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that children are ended
    scale = options.scale or (0.01 if options.quick else 1.0)
    with tempfile.TemporaryDirectory(prefix="convert-") as scratch:
        place = options.corpus or Path(scratch) / "corpus"
        about = corpus.make(place, scale)
        chosen = contenders(place, about, quick=scale < 0.1)
        if options.only:
            chosen = [one for one in chosen if one.name in options.only.split(",")]
        for file in {file for one in chosen for file in one.input.files}:
            warm(file)
        results = _rounds(chosen, options.rounds or (1 if options.quick else 3), Path(scratch))
    _write(results, about, options.out, "quick" if options.quick else "full")
    failed = [r for r in results if r.failure]
    return 1 if failed else 0


def _rounds(chosen: Sequence[Contender], rounds: int, scratch: Path) -> list[Result]:
    """Every contender in turn, round after round, so that a slow minute hits all."""
    results = [Result(contender) for contender in chosen]
    for number in range(rounds):
        for result in results:
            if (number and result.contender.once) or result.failure:
                continue
            _once(result, scratch / "out")
            shown = f"{result.runs[-1].wall:8.2f} s" if not result.failure else result.failure
            print(
                f"{number + 1}: {result.contender.input.name:<34} {result.contender.name:<34} {shown}",
                file=sys.stderr,
            )
    return results


def _once(result: Result, out: Path) -> None:
    # One thread for everybody's numeric libraries: processes are what is compared.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        measured = measure(result.contender.command(out), env)
    except RunFailed as failure:
        result.failure = str(failure).strip().splitlines()[-1][:120]
        print(failure, file=sys.stderr)
    else:
        result.runs.append(measured)
        if result.contender.ours:
            result.rows_out = _rows_written(out)
        else:
            told = json.loads(measured.output)
            result.rows_out = sum(told["rows"].values())
            result.seconds.append(told["seconds"])
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _rows_written(out: Path) -> int:
    """Lines of our rows, without those rejected."""
    count = 0
    for path in out.rglob("*.jsonl"):
        if path.name != "rejected.jsonl":
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    count += block.count(b"\n")
    return count


def _write(results: Sequence[Result], about: dict[str, Any], out: Path, name: str) -> None:
    now = datetime.now(UTC)
    facts = {
        "date": now.isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "libraries": {library: metadata.version(library) for library in LIBRARIES},
        "corpus": about,
        "targets": [
            {"what": t.what, "wanted": t.wanted, "measured": t.figure, "verdict": t.verdict}
            for t in report.targets(results)
        ],
        "results": [result.figures() for result in results],
    }
    table = report.table(results, judged=about["scale"] == 1.0)
    # At a hundredth of the size starting Python and drawing the card's pictures is most of the time.
    head = (
        f"{now:%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"{about['rows']:,} rows, {sum(f['bytes'] for f in about['files']) / 1e6:,.0f} MB.\n"
        f"`beside kodolly` is a contender's rate divided by that of `{ALL_CORES}` on all cores.\n\n"
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")
    (out / f"{name}.md").write_text(head + table)
    report.picture(results, out / f"{name}.png")
    print(head + table)


if __name__ == "__main__":
    raise SystemExit(main())
