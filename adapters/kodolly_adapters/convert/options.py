"""What a person chose; everything here decides the output's bytes and nothing else does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
