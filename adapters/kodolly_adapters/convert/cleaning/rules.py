"""The cleaning rules: what each is called, what it may do, and what it does unless told otherwise.

`off` looks away, `count` counts and keeps, the last mode acts. A rule counts once a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kodolly_adapters.errors import OptionError

OFF, COUNT, FIX, DROP, JOIN, MASK = "off", "count", "fix", "drop", "join", "mask"

_TEXT = (OFF, COUNT, FIX)
_ROW = (OFF, COUNT, DROP)


@dataclass(frozen=True, slots=True)
class Rule:
    """One switchable rule; `what` is its sentence in the help and on the data card."""

    name: str
    modes: tuple[str, ...]
    default: str
    what: str


RULES: tuple[Rule, ...] = (
    Rule("nfc", _TEXT, FIX, "Unicode is composed (NFC), so that one syllable is one character."),
    Rule("newlines", _TEXT, FIX, "CRLF and CR become LF."),
    Rule("bom", _TEXT, FIX, "A byte order mark at the start of a text is removed."),
    Rule("entities", _TEXT, FIX, "HTML entities outside code become the characters they name."),
    Rule(
        "zero-width",
        _TEXT,
        FIX,
        "Invisible characters that mean nothing (zero-width space, soft hyphen) are removed.",
    ),
    Rule("outer-space", _TEXT, FIX, "White space around a text is removed."),
    Rule("no-input-marker", _TEXT, FIX, 'A context that only says "no input" becomes empty.'),
    Rule("leading-colon", _TEXT, FIX, 'A response that starts with ": " loses the colon.'),
    Rule(
        "same-role",
        (OFF, COUNT, JOIN, DROP),
        JOIN,
        "Turns of the same speaker in a row are joined, or all but the first dropped.",
    ),
    Rule("empty", (DROP,), DROP, "A row without instruction or without response is refused."),
    Rule(
        "untranslated", _ROW, COUNT, "The answer is mostly not Korean, and nothing asked for that."
    ),
    Rule("too-short", _ROW, COUNT, "The response has fewer characters than --min-chars."),
    Rule(
        "too-long",
        _ROW,
        COUNT,
        "The row, or a pair of a dialogue, has more characters than --max-chars.",
    ),
    Rule("duplicate", _ROW, COUNT, "The same row stands earlier in the input."),
    Rule("near-duplicate", _ROW, OFF, "Nearly the same row stands earlier in the input."),
    Rule("leakage", _ROW, DROP, "A training row stands in the validation split too."),
    Rule(
        "personal-data",
        (OFF, COUNT, MASK),
        OFF,
        "Korean phone numbers, resident registration numbers and e-mail addresses are masked.",
    ),
)

# What no mode switches: why a piece of input becomes no row, and what sources note beside a row.
REASONS: Mapping[str, str] = {
    "not-json": "The bytes are no JSON.",
    "wrong-shape": "A field holds something else than this source's fields do.",
    "not-unicode": "The text holds half of a surrogate pair, which no UTF-8 file can hold.",
    "no-instruction": "The record has no question field.",
    "no-output": "The record has no answer field.",
    "no-questions": "The article has no questions.",
    "no-turns": "The conversation has no turns.",
    "unknown-role": "The turn's speaker is none of the known names.",
    "answer-without-question": "An answer that no question comes before.",
    "question-without-answer": "A question that no answer follows.",
    "no-answer": "The question has no answer in the record.",
    "empty-question": "The question has no text.",
    "empty-answer": "The answer has no text.",
    "answer-cut": "No window of the page holds the answer.",
    "answer-not-found": "The answer does not stand in the context.",
    "answer-start": "The answer stands in the context, but not where the record says (row kept).",
    "system-turn": "A system message: kept in the context by --history, as first message by --conversations, "
    "else refused.",
    "unknown-category": "The category is none of Dolly's eight; open_qa stands in (row kept).",
}

_BY_NAME = {rule.name: rule for rule in RULES}


def modes_of(
    chosen: Mapping[str, str], source_rules: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The mode of every rule: what was chosen, else the source's default, else the rule's.

    Raises OptionError naming the rule or mode that does not exist, and what does.
    """
    modes = {rule.name: rule.default for rule in RULES}
    for name, mode in [*(source_rules or {}).items(), *chosen.items()]:
        rule = _BY_NAME.get(name)
        if rule is None:
            raise OptionError(f"no rule {name!r}; there are {', '.join(_BY_NAME)}")
        if mode not in rule.modes:
            raise OptionError(f"rule {name} has no mode {mode!r}; it has {', '.join(rule.modes)}")
        modes[name] = mode
    return modes
