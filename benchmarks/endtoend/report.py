"""From blocks to the Markdown and the JSON of a run."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from benchmarks.endtoend.clients import Slice
from benchmarks.endtoend.judge import Ratio, rate, ratio
from benchmarks.endtoend.plan import ENGINE, KODOLLY, TARGET, WAYS

Block = list[Slice]


@dataclass(slots=True)
class Run:
    """Blocks by concurrency; `hits` are prompt tokens the engine found in its cache, by way."""

    head: str
    blocks: dict[int, list[Block]] = field(default_factory=dict)
    hits: dict[str, int] = field(default_factory=dict)

    @property
    def slices(self) -> list[Slice]:
        """All of them."""
        return [each for blocks in self.blocks.values() for block in blocks for each in block]

    @property
    def errors(self) -> list[str]:
        """What went wrong, in words."""
        return [f"{each.way}: {error}" for each in self.slices for error in each.errors]

    def ratios(self) -> dict[int, Ratio]:
        """Concurrency -> ratio."""
        return {concurrency: ratio(blocks) for concurrency, blocks in self.blocks.items()}

    @property
    def failed(self) -> bool:
        """Whether an answer failed or a ratio is below the target beyond doubt."""
        return bool(self.errors) or any(each.missed for each in self.ratios().values())


def text(run: Run) -> str:
    """The Markdown of a run."""
    names = [
        "at once", "blocks", "engine, tokens/s", "KoDolly, tokens/s", "ratio", "95 % interval",
        "median", "first event added, median", f"target {TARGET}",
    ]  # fmt: skip
    out = [run.head, "", *_head(names)]
    for concurrency, made in run.ratios().items():
        slices = [each for block in run.blocks[concurrency] for each in block]
        cells = [
            str(concurrency),
            str(made.blocks),
            *(f"{rate(slices, way):.1f}" for way in WAYS),
            f"**{made.mean:.4f}**",
            f"{made.low:.4f} to {made.high:.4f}",
            f"{made.median:.4f}",
            f"{_added(slices) * 1000:+.1f} ms",
            made.verdict,
        ]
        out.append("| " + " | ".join(cells) + " |")
    out += ["", f"Prompt tokens, and of those found in the engine's cache: {_prompts(run)}."]
    out += [f"Errors: {len(run.errors)}.", *(f"- {error}" for error in run.errors[:10])]
    return "\n".join([*out, ""])


def as_json(run: Run) -> str:
    """The same, and every slice, for machines."""
    ratios = {at: asdict(made) | {"verdict": made.verdict} for at, made in run.ratios().items()}
    facts = {"head": run.head, "target": TARGET, "ratios": ratios, "hits": run.hits}
    out = json.dumps(facts | {"errors": run.errors}, indent=1, ensure_ascii=False)[:-2]
    rows = ",\n  ".join(
        json.dumps({"at_once": at, "block": number} | _row(each))
        for at, blocks in run.blocks.items()
        for number, block in enumerate(blocks)
        for each in block
    )
    return f'{out},\n "slices": [\n  {rows}\n ]\n}}\n'


def _row(each: Slice) -> dict[str, object]:
    first = round(statistics.median(each.first), 4) if each.first else None
    return {
        "way": each.way,
        "seconds": round(each.seconds, 4),
        "tokens": each.tokens,
        "first": first,
    }


def _added(slices: Sequence[Slice]) -> float:
    """Seconds KoDolly adds to the median first event."""
    first = {way: [t for s in slices if s.way == way for t in s.first] for way in WAYS}
    if not all(first.values()):
        return float("nan")
    return statistics.median(first[KODOLLY]) - statistics.median(first[ENGINE])


def _prompts(run: Run) -> str:
    asked = {way: sum(s.prompt_tokens for s in run.slices if s.way == way) for way in WAYS}
    return "; ".join(f"{way} {asked[way]:,}, {run.hits.get(way, 0):,}" for way in WAYS)


def _head(names: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(names) + " |", "| " + " | ".join(["---:"] * len(names)) + " |"]
