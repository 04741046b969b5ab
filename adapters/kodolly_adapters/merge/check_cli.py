"""`kodolly unmerge-check BASE MERGED`: which tensors a merge changed, by how much, and of what rank.

kodolly unmerge-check base/ merged/
kodolly unmerge-check base/ merged/ --adapter adapter/     also: is it this adapter's doing?
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from kodolly_adapters.errors import UserError

if TYPE_CHECKING:
    from .check import Comparison, Difference

SHOWN = 40  # lines of tensors; --all shows every one


def main(argv: Sequence[str]) -> int:
    """Run the command; 0, or 1 where the merged model is not what --adapter makes of the base."""
    chosen = _parser().parse_args(argv)
    from .check import compare, total
    from .places import adapter_directory, base_directory
    from .progress import Progress

    try:
        base, merged = base_directory(chosen.base), base_directory(chosen.merged)
        adapter = adapter_directory(chosen.adapter) if chosen.adapter else None
        with Progress("unmerge-check", total(base, merged), show=not chosen.quiet) as progress:
            found = compare(base, merged, adapter, progress)
    except (UserError, OSError) as error:
        sys.stderr.write(f"kodolly unmerge-check: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nkodolly unmerge-check: stopped\n")
        return 130
    if chosen.json:
        sys.stdout.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join(report(found, every=chosen.all)) + "\n")
    return 1 if found.wrong else 0


def report(found: Comparison, *, every: bool = False) -> list[str]:
    """The comparison in lines for people."""
    lines = []
    shown = found.differences if every else found.differences[:SHOWN]
    if shown:
        lines.append(
            f"{'change rms':>10} {'of base':>8} {'largest':>8} {'rows':>7} {'rank':>5}  tensor"
        )
    lines += [_line(difference) for difference in shown]
    if left := len(found.differences) - len(shown):
        lines.append(f"... and {left:,} more (--all)")
    lines.append(
        f"{len(found.differences):,} tensors differ, {found.equal:,} are equal to the last bit"
    )
    if found.asked and found.wrong:
        names = ", ".join(found.wrong[:5])
        lines.append(
            f"NOT what the adapter makes of the base: {names} ({len(found.wrong):,} in all)"
        )
    elif found.asked:
        lines.append("every tensor is what the adapter makes of the base, to the last bit")
    return lines


def _line(one: Difference) -> str:
    mark = "  (not the adapter's)" if one.predicted is False else ""
    if one.kind in ("new", "gone", "cast"):
        return f"{one.kind:>42}  {one.name} {list(one.shape)}{mark}"
    rank = "full" if one.rank is None and len(one.shape) == 2 else one.rank
    rank = "-" if rank is None else rank
    resized = " resized" if one.kind == "resized" else ""
    return (
        f"{one.delta:>10.3g} {one.share:>8.2%} {one.largest:>8.3g} {one.rows:>7,} {rank:>5}  "
        f"{one.name} {list(one.shape)}{resized}{mark}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kodolly unmerge-check",
        description="Tell what differs between a base and a model merged from it.",
    )
    add = parser.add_argument
    add("base", metavar="BASE", help="the model directory before, or a hub name")
    add("merged", metavar="MERGED", help="the model directory after")
    add("--adapter", metavar="ADAPTER", help="tell whether the change is this adapter's, exactly")
    add("--all", action="store_true", help=f"every tensor, not only {SHOWN}")
    add("--json", action="store_true", help="all of it as one line of JSON")
    add("--quiet", action="store_true", help="no progress")
    return parser
