"""The sources KoDolly knows, in the order a file is tried against them."""

from __future__ import annotations

from ..reading.source import Source
from .instructions import CHATBOT, DOLLY, HRC, KOALPACA, KOVICUNA_ALPACA
from .korquad1 import KORQUAD1
from .korquad2 import KORQUAD2, KORQUAD2_QUESTIONS
from .kovicuna import KOVICUNA

# Records that are easy to recognise come first; KoVicuna's Alpaca-style file, recognised by name, before KoAlpaca.
SOURCES: tuple[Source, ...] = (
    KOVICUNA,
    KORQUAD2,
    KORQUAD1,
    KORQUAD2_QUESTIONS,
    HRC,
    DOLLY,
    KOVICUNA_ALPACA,
    KOALPACA,
    CHATBOT,
)
BY_NAME = {source.name: source for source in SOURCES}
