"""The data card, `dataset_card.md`: what was converted, how, from what, and what may be done with it.

It depends only on the summary, so that the same summary gives the same bytes. Its words are in
`dataset_card.md.jinja`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from functools import partial

from jinja2 import Environment, PackageLoader, StrictUndefined

from kodolly_adapters.markdown_text import code, table, text

from ..cleaning.rules import COUNT, DROP, FIX, JOIN, MASK, OFF, all_rules, meaning
from ..schema import CARD_FILE, LENGTHS_PICTURE, SOURCES_PICTURE
from .report import report
from .summary import FIELDS, SAMPLE_CHARS, RuleCount, Summary

VERBS = {
    COUNT: "counted", FIX: "fixed", DROP: "dropped", JOIN: "joined", MASK: "masked", OFF: "off",
}  # fmt: skip
# Licences that the hub has a name for; any other is "other" there, with a name and a link.
HUB_LICENCES = {
    "apache-2.0", "mit",
    "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
}  # fmt: skip
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
LARGEST = "1M<n<10M"


def card(summary: Summary, picture_files: Sequence[str] = ()) -> str:
    """The card's whole text. `picture_files` are the pictures to show, relative to the card."""
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"text": text, "code": code, "meaning": meaning}
    environment.filters["json"] = partial(json.dumps, ensure_ascii=False)
    rows = sum(split.rows for split in summary.splits)
    active = {rule.name for source in summary.sources for rule in source.rules if rule.mode != OFF}
    return environment.get_template("dataset_card.md.jinja").render(
        summary=summary,
        picture_files=picture_files,
        pictures={"sources": SOURCES_PICTURE, "lengths": LENGTHS_PICTURE},
        rows=rows,
        size=next((name for limit, name in SIZES if rows < limit), LARGEST),
        licence=_hub_licence(summary),
        terms=[(source, one) for source in summary.sources for one in source.licences],
        report=report(summary),
        faults=summary.faults(),
        reasons=sorted({name for source in summary.sources for name in source.counts.rejections}),
        rules=_rules(summary, active),
        off=[name for name, mode in summary.rules.items() if mode == OFF and name not in active],
        fields=FIELDS,
        sample_chars=SAMPLE_CHARS,
        command=shlex.join(summary.command),
        table=table,
    )


def _hub_licence(summary: Summary) -> list[str]:
    """The lines of the card's head about the licence; several, or one unknown to the hub, are `other`."""
    licences = {one.name: one.url for source in summary.sources for one in source.licences}
    if len(licences) != 1:
        return ["license: other", "license_name: several", f"license_link: {CARD_FILE}"]
    [(name, url)] = licences.items()
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    if slug in HUB_LICENCES:
        return [f"license: {slug}"]
    link = json.dumps(url) if url else CARD_FILE
    return ["license: other", f"license_name: {slug}", f"license_link: {link}"]


def _rules(summary: Summary, active: set[str]) -> list[list[object]]:
    """The table of `active` rules: those of rules.toml in its order, then the sources' notes."""
    by_source = [{rule.name: rule for rule in source.rules} for source in summary.sources]
    rows: list[list[object]] = []
    names = [name for name in all_rules() if name in active]
    for name in [*names, *sorted(active - set(names))]:
        mode = summary.rules.get(name, COUNT)
        hits = [_hits(rules.get(name), mode) for rules in by_source]
        rows.append([code(name), VERBS[mode], *hits, text(meaning(name))])
    return rows


def _hits(rule: RuleCount | None, mode: str) -> str:
    """A source's hits of a rule, and what was done if that is not what `mode` does."""
    if rule is None:
        return "0"
    return f"{rule.hits:,}" + ("" if rule.mode == mode else f" ({VERBS[rule.mode]})")
