"""The data card, `dataset_card.md`: what was converted, how, from what, and what may be done with it.

A pure function of the summary: no time, no path of a machine, the same bytes each time.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..cleaning.rules import COUNT, DROP, FIX, JOIN, MASK, OFF, all_rules, meaning
from . import pictures
from .summary import FIELDS, SAMPLE_CHARS, Lengths, RuleCount, SourceSummary, Summary

CARD_FILE = "dataset_card.md"
DID = {COUNT: "counted", FIX: "fixed", DROP: "dropped", JOIN: "joined", MASK: "masked", OFF: "off"}
# The hub's names of the licences it knows; any other is "other" there, with a name and a link.
HUB_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "CC BY-ND 4.0": "cc-by-nd-4.0",
    "CC BY-SA 3.0": "cc-by-sa-3.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "MIT": "mit",
}
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGEST = "1M<n<10M"


def write_card(summary: Summary, folder: Path, drawn: Sequence[str] | None = None) -> Path:
    """Write the card into `folder`; gives its path. Pictures are drawn unless `drawn` names them."""
    if drawn is None:
        drawn = pictures.draw(summary, folder)
    path = folder / CARD_FILE
    path.write_bytes(card(summary, drawn).encode())
    return path


def card(summary: Summary, drawn: Sequence[str] = ()) -> str:
    """The card's whole text; `drawn` names the pictures that stand beside it."""
    parts: list[Callable[[Summary], Iterable[str]]] = [
        _front_matter,
        _warnings,
        _what_it_is,
        _splits,
        _counts,
        lambda _: _picture(drawn, pictures.SOURCES, "units kept and refused, by source"),
        _refused,
        _rules,
        _lengths,
        lambda _: _picture(drawn, pictures.LENGTHS, "lengths of the fields, by source"),
        _samples,
        _licences,
        _inputs,
        _again,
    ]
    return "\n\n".join(block for part in parts for block in part(summary)) + "\n"


def text(value: object) -> str:
    """Anything as one line of Markdown that means only itself, in a table's cell too."""
    line = " ".join(str(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return re.sub(r"([\\`*_\[\]~])", r"\\\1", line)


def code(value: str) -> str:
    """A name in code type, or as plain text where code type could not hold it."""
    return text(value) if re.search(r"[`|\\\n]", value) else f"`{value}`"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table of cells that are Markdown already; columns of numbers stand to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    columns = zip(*cells, strict=True) if cells else ([] for _ in head)
    rule = ["---:" if column and all(map(_NUMBER, column)) else "---" for column in columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *cells])


_NUMBER = re.compile(r"[\d,.]+(?: \(\w+\))?").fullmatch


def _front_matter(summary: Summary) -> Iterator[str]:
    rows = sum(split.rows for split in summary.splits)
    size = next((name for limit, name in SIZES if rows < limit), LARGEST)
    lines = [
        "---",
        *_hub_licence(summary),
        "language:\n- ko",
        "task_categories:\n- question-answering\n- text-generation",
        f"size_categories:\n- {size}",
        "pretty_name: Korean Dolly rows",
    ]
    if summary.splits:
        lines.append("configs:\n- config_name: default\n  data_files:")
        for name in dict.fromkeys(split.name for split in summary.splits):
            files = [json.dumps(split.file) for split in summary.splits if split.name == name]
            lines.append(f"  - split: {name}\n    path: [{', '.join(files)}]")
    yield "\n".join([*lines, "---"])


def _hub_licence(summary: Summary) -> list[str]:
    """One licence as the hub names it; several, or one it does not know, are `other` there."""
    licences = {source.licence.name: source.licence.url for source in summary.sources}
    if len(licences) != 1:
        return ["license: other", "license_name: several", f"license_link: {CARD_FILE}"]
    [(name, url)] = licences.items()
    if name in HUB_LICENCES:
        return [f"license: {HUB_LICENCES[name]}"]
    return ["license: other", f"license_name: {_slug(name)}", f"license_link: {json.dumps(url)}"]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _warnings(summary: Summary) -> Iterator[str]:
    """What nobody may miss, before anything else."""
    bound = [source for source in summary.sources if not source.licence.commercial]
    if bound:
        yield _warning("not for commercial use.", bound)
    closed = [source for source in summary.sources if not source.licence.derivatives]
    if closed:
        yield _warning("do not hand these rows on.", closed)
    wrong = summary.reconciles()
    if wrong:
        lines = "\n".join(f"> - {text(line)}" for line in wrong)
        yield f"> **Warning: the counts do not add up.** Something was lost or counted twice:\n>\n{lines}"


def _warning(claim: str, sources: Iterable[SourceSummary]) -> str:
    lines = (
        f"> - {text(s.title)} ({text(s.licence.name)}): {text(s.licence.consequence)}"
        for s in sources
    )
    return f"> **Warning: {claim}** These sources' terms reach over every mix they are in:\n>\n" + (
        "\n".join(lines)
    )


def _what_it_is(summary: Summary) -> Iterator[str]:
    rows = sum(split.rows for split in summary.splits)
    yield "# Korean Dolly rows"
    yield (
        f"{rows:,} rows of instruction, context, response and category, converted from "
        f"{_listed([source.title for source in summary.sources])} by "
        f"`kodolly convert` {text(summary.version)}."
    )
    options = summary.options
    if options.get("conversations"):
        yield "Each row is a whole dialogue, its turns in `messages`."
    if options.get("provenance"):
        yield "`*.provenance.*` say where each row came from: to look things up, not to train on."
    if options.get("kovicuna_roles") == "as-written":
        yield (
            "**KoVicuna's roles are swapped** (`--kovicuna-roles as-written`): "
            "what ChatGPT said is the instruction, what the person said the response."
        )


def _listed(names: Sequence[str]) -> str:
    shown = [text(name) for name in names]
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]])) or "nothing"


def _splits(summary: Summary) -> Iterator[str]:
    yield "## Splits"
    yield table(
        ["Split", "Rows", "Bytes", "File", "SHA-256"],
        ((text(s.name), s.rows, s.bytes, code(s.file), f"`{s.sha256}`") for s in summary.splits),
    )


def _counts(summary: Summary) -> Iterator[str]:
    yield "## Counts"
    yield (
        "Every unit of the input is kept in a row or refused with a reason; "
        "refusals stand in `rejected.jsonl` with file and place."
    )
    yield table(
        ["Source", "Records", "Units", "Unit", "Kept", "Refused", "Rows", "Adds up"],
        (
            (
                text(s.title),
                s.counts.records,
                s.counts.units,
                text(s.unit),
                s.counts.kept,
                sum(s.counts.refused.values()),
                s.counts.rows,
                "yes" if s.counts.units == s.counts.kept + sum(s.counts.refused.values()) else "NO",
            )
            for s in summary.sources
        ),
    )
    twice = summary.duplicates
    if twice.exact_rows:
        yield (
            f"{twice.exact_rows:,} rows stand exactly so earlier in the input "
            f"({twice.exact_groups:,} groups)."
        )
    if twice.near_rows:
        yield (
            f"{twice.near_rows:,} rows are nearly the same as an earlier one "
            f"({twice.near_groups:,} groups)."
        )


def _refused(summary: Summary) -> Iterator[str]:
    reasons = sorted({reason for source in summary.sources for reason in source.counts.refused})
    if not reasons:
        yield "Nothing was refused."
        return
    yield "### Refused, by reason"
    yield table(
        ["Reason", *(text(source.title) for source in summary.sources), "What it means"],
        (
            (
                code(reason),
                *(source.counts.refused.get(reason, 0) for source in summary.sources),
                text(meaning(reason)),
            )
            for reason in reasons
        ),
    )


def _rules(summary: Summary) -> Iterator[str]:
    yield "## Rules"
    by_source = [{rule.name: rule for rule in source.rules} for source in summary.sources]
    order = list(all_rules())
    found = {rule.name for rules in by_source for rule in rules.values() if rule.mode != OFF}
    names = [name for name in order if name in found] + sorted(found - set(order))
    modes = summary.rules
    yield "Rows each rule found something in; a number's own mode is named where a source differs."
    yield table(
        ["Rule", "Did", *(text(source.title) for source in summary.sources), "What it is about"],
        (
            (
                code(name),
                DID.get(modes.get(name, COUNT), text(modes.get(name))),
                *(_hits(rules.get(name), modes.get(name, COUNT)) for rules in by_source),
                text(meaning(name)),
            )
            for name in names
        ),
    )
    off = [code(name) for name, mode in modes.items() if mode == OFF and name not in found]
    if off:
        yield f"Switched off: {', '.join(off)}."


def _hits(rule: RuleCount | None, usual: str) -> str:
    if rule is None:
        return "0"
    return f"{rule.hits:,}" + ("" if rule.mode == usual else f" ({DID.get(rule.mode, rule.mode)})")


def _lengths(summary: Summary) -> Iterator[str]:
    yield "## Lengths"
    yield "In characters, over the kept rows; empty fields count in `empty` only."
    yield table(
        ["Source", "Field", "Rows", "Empty", "Min", "Mean", "p50", "p90", "p99", "Max"],
        (
            (text(source.title), field, *_figures(source.lengths[field]))
            for source in summary.sources
            for field in FIELDS
            if field in source.lengths
        ),
    )


def _figures(of: Lengths) -> tuple[object, ...]:
    return (of.rows, of.empty, of.min, f"{of.mean:,.1f}", of.p50, of.p90, of.p99, of.max)


def _picture(drawn: Sequence[str], name: str, what: str) -> Iterator[str]:
    if name in drawn:
        yield f"![{what}]({name})"


def _samples(summary: Summary) -> Iterator[str]:
    yield "## Samples"
    yield f"Rows with the smallest hashes, fields cut to {SAMPLE_CHARS} characters."
    for source in summary.sources:
        yield f"### {text(source.title)}"
        if not source.licence.derivatives:
            yield (
                f"No text is shown: {text(source.licence.name)} lets nobody hand on converted rows. "
                "Lengths of the sampled rows:"
            )
            yield table(
                ["Category", *FIELDS],
                (
                    (text(s.category), *(s.lengths.get(f, 0) for f in FIELDS))
                    for s in source.samples
                ),
            )
            continue
        for sample in source.samples:
            shown = {**(sample.row or {}), "category": sample.category}
            yield f"```json\n{json.dumps(shown, ensure_ascii=False, indent=2)}\n```"


def _licences(summary: Summary) -> Iterator[str]:
    yield "## Licences and what follows"
    yield table(
        ["Source", "Licence", "May a model be sold?", "May rows be handed on?", "What follows"],
        (
            (
                text(source.title),
                f"[{text(source.licence.name)}](<{source.licence.url}>)",
                "yes" if source.licence.commercial else "**no**",
                "yes" if source.licence.derivatives else "**no**",
                text(source.licence.consequence),
            )
            for source in summary.sources
        ),
    )
    yield "This is our reading of the terms, no legal advice."


def _inputs(summary: Summary) -> Iterator[str]:
    yield "## Inputs"
    yield "Sizes and hashes are of the unpacked files."
    yield table(
        ["File", "Source", "Licence", "Records", "Units", "Kept", "Refused", "Bytes", "SHA-256"],
        (
            (
                code(i.name),
                code(i.source),
                text(i.licence),
                i.counts.records,
                i.counts.units,
                i.counts.kept,
                sum(i.counts.refused.values()),
                i.bytes,
                f"`{i.sha256}`",
            )
            for i in summary.inputs
        ),
    )
    if summary.skipped:
        yield "Left aside:"
        yield table(["File", "Why"], ((code(s.name), text(s.why)) for s in summary.skipped))


def _again(summary: Summary) -> Iterator[str]:
    yield "## How to make it again"
    yield f"With kodolly {text(summary.version)} and the inputs above:"
    yield f"```sh\n{shlex.join(summary.command)}\n```"
