"""The table of docs/clients.md."""

from __future__ import annotations

import re
from collections.abc import Mapping

# Client -> flow -> its error, None where it works.
Column = dict[str, dict[str, str | None]]

BEGIN = "<!-- `make bench-clients` writes what follows -->"
END = "<!-- as far as here -->"
LONGEST = 220  # characters of an error
IDS = re.compile(r"[0-9a-f]{16,}|127\.0\.0\.1:\d+")


def with_table(page: str, titles: Mapping[str, str], results: Mapping[str, Column]) -> str:
    """The page with a new table between its marks. Raises ValueError if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return f"{before}{begin}\n{table(titles, results)}{end}{after}"


def table(titles: Mapping[str, str], results: Mapping[str, Column]) -> str:
    """One row a flow, one column a server; each distinct error is a footnote."""
    shown = [name for name in titles if name in results]
    notes: dict[str, int] = {}
    lines = [
        f"| client | flow | {' | '.join(titles[name] for name in shown)} |",
        f"|---|---|{'---|' * len(shown)}",
    ]
    flows: dict[tuple[str, str], None] = {}
    for name in shown:
        flows |= {(c, f): None for c, said in results[name].items() for f in said}
    for client, flow in sorted(flows, key=lambda each: each[0].lower()):
        cells = [_cell(results[name].get(client, {}), flow, notes) for name in shown]
        lines.append(f"| {client} | {flow.replace('_', ' ')} | {' | '.join(cells)} |")
    works = [
        sum(error is None for said in results[name].values() for error in said.values())
        for name in shown
    ]
    lines.append(f"| | **works, of {len(flows)}** | {' | '.join(map(str, works))} |")
    footnotes = [f"{number}. `{error}`" for error, number in notes.items()]
    return "\n".join([*lines, "", *footnotes, ""])


def _cell(said: Mapping[str, str | None], flow: str, notes: dict[str, int]) -> str:
    if flow not in said:
        return "-"
    error = said[flow]
    if error is None:
        return "ok"
    text = IDS.sub("...", error)[:LONGEST].replace("`", "'").replace("|", "/")
    return f"fails ({notes.setdefault(text, len(notes) + 1)})"
