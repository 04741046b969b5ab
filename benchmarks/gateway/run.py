"""KoDolly's gateway against FastChat's and others, before one scripted engine, interleaved.

    python -m benchmarks.gateway.run            the full run with every rival, under half an hour
    python -m benchmarks.gateway.run --quick    about a minute, FastChat and ours alone
    python -m benchmarks.gateway.run --against REV [--quick]    this code beside a commit's

Prints a Markdown table; writes it, a JSON file and a bar chart to benchmarks/gateway/results/.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gateway import report
from benchmarks.gateway.against import compare
from benchmarks.gateway.bench import Bench, loop_factory
from benchmarks.gateway.environments import version
from benchmarks.gateway.plan import cells
from benchmarks.gateway.report import Result
from benchmarks.gateway.rivals import Rival, rivals
from benchmarks.gateway.stacks import FASTCHAT, KODOLLY, KODOLLY_STOCK, stacks
from benchmarks.gateway.stored import compare_stored

OWN = {"fastchat": FASTCHAT, "kodolly": KODOLLY, "kodolly-stock": KODOLLY_STOCK}
RESULTS = Path(__file__).with_name("results")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument(
        "--against", metavar="REV", help="this code beside that commit's, and nobody else"
    )
    parser.add_argument(
        "--rounds", type=int, help="default 3 (--quick: 1); --against: 12 (8, the fewest)"
    )
    parser.add_argument(
        "--targets",
        help=f"gateways beside `direct`, with commas (default: {','.join(OWN)} with --quick,"
        f" else also {','.join(rivals(None))})",
    )
    parser.add_argument(
        "--production-stack", type=Path, metavar="DIR", help="a checkout of production-stack"
    )
    parser.add_argument(
        "--seconds", type=float, help="start no cell after this (default 1500 or 50)"
    )
    parser.add_argument(
        "--stored", action="store_true", help="stored responses beside others, and nobody else"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    keys = [*OWN] if options.quick else [*OWN, *rivals(None)]
    if options.targets is not None:
        keys = [key for key in options.targets.split(",") if key]
    if unknown := sorted(set(keys) - {*OWN, *rivals(None)}):
        parser.error(f"--targets: unknown: {', '.join(unknown)}")
    options.keys = keys
    return options


def main() -> int:
    options = _options()
    # Both unwind the stack, so that every child is ended; a shell's `&` would ignore Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.against:
        try:
            return compare(options.against, quick=options.quick, rounds=options.rounds)
        except KeyboardInterrupt:
            return 130
        except (RuntimeError, TimeoutError) as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 1
    if options.stored:
        return compare_stored(options.rounds or 3, options.out)
    names = [OWN[key] for key in options.keys if key in OWN]
    known = rivals(options.production_stack and options.production_stack.resolve())
    others = [known[key] for key in options.keys if key in known]
    rounds = options.rounds or (1 if options.quick else 3)
    seconds = options.seconds or (50 if options.quick else 1500)
    with tempfile.TemporaryDirectory(prefix="gateway-") as place:
        try:
            with stacks(Path(place), names, others) as standing:
                targets, engine_port, engine_pid, skipped = standing
                deadline = time.monotonic() + seconds
                bench = Bench(targets, engine_port, engine_pid, deadline)
                with asyncio.Runner(loop_factory=loop_factory()) as runner:
                    results = runner.run(bench.run(cells(options.quick), rounds))
        except KeyboardInterrupt:
            return 130
        except (RuntimeError, TimeoutError) as failure:
            _show_logs(Path(place))
            print(f"error: {failure}", file=sys.stderr)
            return 1
    facts = {
        "rounds": bench.rounds,
        "quick": options.quick,
        "left_out": bench.left_out,
        "skipped": skipped,
        "versions": _versions(others),
    }
    _write(results, [target.name for target in targets], options.out, facts)
    return 1 if any(r.errors for r in results if r.target in {"direct", KODOLLY}) else 0


def _show_logs(place: Path) -> None:
    for log in sorted(place.glob("*.out")):
        tail = log.read_text(errors="replace").splitlines()[-8:]
        print(f"--- {log.name}", *tail, sep="\n", file=sys.stderr)


def _write(results: list[Result], targets: list[str], out: Path, run: dict[str, Any]) -> None:
    lines = report.rows(results, targets)
    facts = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": report.machine(),
        **run,
        "results": [result.figures() for result in results],
    }
    text = f"{_head(facts)}\n\n{report.table(lines, targets, KODOLLY, FASTCHAT)}\n"
    sys.stdout.write(text)
    out.mkdir(parents=True, exist_ok=True)
    name = "quick" if run["quick"] else "full"
    (out / f"{name}.md").write_text(text)
    (out / f"{name}.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    (out / f"{name}.svg").write_text(report.chart(lines, targets))


def _head(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    text = f"{facts['date']}, {facts['machine']}; {versions}; {facts['rounds']} round(s)."
    if facts["left_out"]:
        text += f" Left out for time: {', '.join(facts['left_out'])}."
    for name, why in facts["skipped"].items():
        text += f"\n\n{name} is not in this run: {why}."
    return text


def _versions(others: list[Rival]) -> dict[str, str]:
    pinned = {rival.name: version(rival.key, rival.package) for rival in others if rival.package}
    own = {"kodolly": metadata.version("kodolly"), "fschat": version("fastchat", "fschat")}
    return {name: number for name, number in (own | pinned).items() if number}


if __name__ == "__main__":
    sys.exit(main())
