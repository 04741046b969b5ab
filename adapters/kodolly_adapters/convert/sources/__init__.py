"""The sources KoDolly knows, in the order a file is tried against them."""

from __future__ import annotations

from ..reading.source import Source
from .dialogues import DIALOGUE_TEXTS, DIALOGUES, KOVICUNA
from .korquad2 import KORQUAD2, KORQUAD2_QUESTIONS
from .shapes import shape_sources
from .squad import KLUE_MRC, KORQUAD1, KORQUAD1_FLAT, SQUAD, SQUAD_FLAT

# Records that are easy to recognise come first; a set that is recognised by its file's name goes before its shape.
SOURCES: tuple[Source, ...] = (
    KOVICUNA, DIALOGUES, DIALOGUE_TEXTS,
    KORQUAD2, KORQUAD1, KLUE_MRC, SQUAD, KORQUAD2_QUESTIONS, KORQUAD1_FLAT, SQUAD_FLAT,
    *shape_sources().values(),
)  # fmt: skip
BY_NAME = {source.name: source for source in SOURCES}
