"""What a person chose; everything here decides the output's bytes and nothing else does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Categories = Literal["study", "dolly"]
Roles = Literal["human-asks", "as-written"]
PageContext = Literal["window", "page", "html"]
Splits = Literal["hash", "official"]
Format = Literal["jsonl", "parquet"]


@dataclass(frozen=True, slots=True)
class Options:
    """All choices of one conversion.

    `rules` maps a rule's name to its mode and holds only what differs from the rules' defaults (rules.py).
    """

    rules: Mapping[str, str] = field(default_factory=dict)
    categories: Categories = "study"
    kovicuna_roles: Roles = "human-asks"
    history: int = 0  # earlier pairs of a conversation put into the context
    conversations: bool = False  # one row a dialogue, in `messages`
    korquad2_context: PageContext = "window"
    window_tokens: int = 384
    tokenizer: Path | None = None  # counts the window's tokens; None estimates them
    min_chars: int = 2  # of a response; rule too-short
    max_chars: int = 20_000  # of instruction + context + response; rule too-long
    near_threshold: float = 0.8  # estimated Jaccard similarity; rule near-duplicate
    validation: float = 0.01  # share of groups in the validation split
    splits: Splits = "hash"
    format: Format = "jsonl"
    provenance: bool = False
    keep_going: bool = False  # reject what is no JSON instead of stopping


def plain_options(options: Options) -> dict[str, Any]:
    """The options as JSON holds them; of the tokenizer's path its last part."""
    return {**asdict(options), "tokenizer": options.tokenizer and options.tokenizer.name}


def command_line(
    options: Options, inputs: Iterable[str], source: str | None = None
) -> tuple[str, ...]:
    """The words of the shortest command that makes the same bytes again.

    Only what differs from the defaults is named; `inputs` are the SOURCE arguments as given.
    """
    defaults = plain_options(Options())
    words = ["kodolly", "convert", *map(_plain_name, inputs), "--out", "OUT"]
    if source:
        words += ["--source", source]
    for name, value in plain_options(options).items():
        if name == "rules":
            for rule, mode in sorted(value.items()):
                words += ["--rule", f"{rule}={mode}"]
        elif value != defaults[name]:
            words.append("--" + name.replace("_", "-"))
            words += [] if value is True else [str(value)]
    return tuple(words)


def _plain_name(name: str) -> str:
    """A file's name without the path of a machine: absolute and upward paths keep their last part."""
    archive, bang, member = name.partition("!")
    path = Path(archive)
    plain = path.name if path.is_absolute() or ".." in path.parts else path.as_posix()
    return plain + bang + member
