"""Coverage-guided fuzzing of the converter; needs atheris, which `make fuzz` puts in a place of its own.

    python tests/fuzz/atheris_convert.py [--runs N] [--seconds S] [libFuzzer's flags]

Every input is a list of decisions from which support.convert_fuzz makes a damaged file; one in 64 goes through
a whole run on disk, the others through the pure functions. A failure is written to ./crash-* and shown: run
the same command with that file's name to see it again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["kodolly_adapters.convert"]):
    from support.convert_fuzz import check, check_run, damaged

    from kodolly_adapters.convert.output import pictures


def one_input(data: bytes) -> None:
    """One damaged file, decided by `data`."""
    provider = atheris.FuzzedDataProvider(data)

    def choose(below: int) -> int:
        return int(provider.ConsumeIntInRange(0, below - 1))

    file = damaged(choose)
    if choose(64) == 63:
        check_run(file, choose(6))
    else:
        check(file, 1 + choose(4_000))


def main() -> None:
    """Fuzz until a failure, `--runs`, `--seconds`, or for ever."""
    flags = {"--runs": "-runs", "--seconds": "-max_total_time"}
    # Decisions are needed by the dozen: long inputs from the start.
    arguments = [sys.argv[0], "-timeout=30", "-rss_limit_mb=2000", "-len_control=0", "-max_len=600"]
    rest = iter(sys.argv[1:])
    for argument in rest:
        arguments.append(f"{flags[argument]}={next(rest)}" if argument in flags else argument)
    vars(pictures)["draw"] = lambda *_: []  # pictures take a second a run
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
