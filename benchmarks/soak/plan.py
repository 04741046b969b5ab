"""The sizes of a soak: how many of what, how long, how fast, and what counts as growth."""

from dataclasses import dataclass, replace

from benchmarks.chaos import plan as chaos

MODEL = chaos.MODEL
ENGINES = 2
KEYS = 100  # client keys, which the clients share out among themselves
# Calls before the soak: the API keeps at most 65,536 prefixes, and its heap is at its largest when each has
# been replaced once among calls of all kinds.
FILL = 100_000
EVERY = 5.0  # seconds between samples
BOUND = 0.03  # share of its memory a process may grow by over the second half
FILES = 16  # files that may be open beyond those before the first call, once everybody has left
SILENCE = 60.0  # a call that says nothing this long has failed
LAST = 180.0  # seconds the last answers have to end

# Answers of 8 to 200 tokens, ten tokens a second: about 20 new calls a second from 200 clients.
ANSWERS = replace(chaos.FULL, tokens=(8, 200), token_delay=0.1)
# The same before, as fast as the machine allows.
FILLING = replace(ANSWERS, tokens=(8, 40), token_delay=0.005)


@dataclass(frozen=True, slots=True)
class Soak:
    """What the options say."""

    minutes: float = 20.0
    streams: int = 200
    fill: int = FILL
