"""The options of a conversion: with the input, all that the output's bytes depend on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    """The options of one conversion."""

    rules: Mapping[str, str] = field(default_factory=dict)  # rule -> mode set by the user
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
    keep_going: bool = False  # reject what cannot be decoded, instead of stopping there


def plain_options(options: Options) -> dict[str, Any]:
    """The options as JSON values; the tokenizer's path without its folders."""
    return {**asdict(options), "tokenizer": options.tokenizer and options.tokenizer.name}


def command_line(
    options: Options, inputs: Iterable[str], source_flags: Sequence[str] = ()
) -> tuple[str, ...]:
    """The shortest command that makes the same bytes again, as a list of words.

    Only options that differ from the defaults are in it; `inputs` are the SOURCE arguments, `source_flags` say what
    the files are (--source, --map, --license).
    """
    defaults = plain_options(Options())
    words = ["kodolly", "convert", *map(_plain_name, inputs), "--out", "OUT", *source_flags]
    for name, value in plain_options(options).items():
        if name == "rules":
            for rule, mode in sorted(value.items()):
                words += ["--rule", f"{rule}={mode}"]
        elif value != defaults[name]:
            words.append("--" + name.replace("_", "-"))
            words += [] if value is True else [str(value)]
    return tuple(words)


def _plain_name(name: str) -> str:
    """A file's name without this machine's folders: of absolute and `..` paths only the last part."""
    archive, bang, member = name.partition("!")
    path = Path(archive)
    plain = path.name if path.is_absolute() or ".." in path.parts else path.as_posix()
    return plain + bang + member
