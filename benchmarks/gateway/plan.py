"""What is measured: which gateways, which cells, how many requests of which size and pace."""

from dataclasses import dataclass

MODEL = "demo"


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: `requests` answers of `tokens` tokens, `concurrency` at a time.

    kind: whole (not streamed), first (short streams, for the time to the first token), stream
    (paced streams, for the time of a whole answer and CPU a token) or idle (streams that are open
    and silent after their first token, for their memory). Delays are seconds.
    """

    kind: str
    concurrency: int
    requests: int
    tokens: int
    first_delay: float
    token_delay: float
    once: bool = False  # measured in the first round only
    slices: int = 1  # times a round, the targets in alternation, `requests` each

    @property
    def streamed(self) -> bool:
        return self.kind != "whole"

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.tokens} c={self.concurrency}"


@dataclass(frozen=True, slots=True)
class Target:
    """One way to the engine: its name, its port, the processes whose CPU is the gateway's."""

    name: str
    port: int
    pids: tuple[int, ...]


# The engine thinks longer when more people ask, so that 64 at once offer about 160 requests a
# second and not all that one core can make: a closed loop against an engine that answers at once
# would measure how the whole box saturates, the same figure for every gateway.
THINK = {1: 0.01, 16: 0.1, 64: 0.4, 256: 1.6}
IDLE = 3600.0  # seconds a token, where none but the first should come
PACE = 0.01  # seconds a token: about what one GPU gives each of many streams


def cells(quick: bool) -> list[Cell]:
    """The full plan, or one of about a minute."""
    # What comes after a first token comes at an engine's pace: a burst of all the others in the same
    # moment, which no engine sends, would measure how three processes share the cores.
    sizes = {"whole": (32, 0.0), "first": (4, PACE)}
    plan = [
        Cell(kind, level, count, sizes[kind][0], THINK[level], sizes[kind][1], slices=slices)
        for kind, levels in _short(quick).items()
        for level, (slices, count) in levels.items()
    ]
    for tokens, levels in _streams(quick).items():
        plan += [
            Cell("stream", level, count, tokens, 0.05, PACE, once=tokens > 1000)
            for level, count in levels.items()
        ]
    idle = 32 if quick else 256
    return [*plan, Cell("idle", idle, idle, 2, 0.0, IDLE, once=True)]


def _short(quick: bool) -> dict[str, dict[int, tuple[int, int]]]:
    """Kind -> concurrency -> (slices, requests): thin slices where a burst of noise decides."""
    if quick:
        return {
            "whole": {1: (2, 10), 16: (1, 48), 64: (1, 96)},
            "first": {1: (2, 10), 16: (1, 16), 64: (1, 64)},
        }
    return {
        "whole": {1: (5, 12), 16: (2, 64), 64: (1, 192), 256: (1, 512)},
        "first": {1: (6, 10), 16: (2, 32), 64: (1, 96), 256: (1, 256)},
    }


def _streams(quick: bool) -> dict[int, dict[int, int]]:
    """Tokens of a paced stream -> concurrency -> requests."""
    if quick:
        return {128: {1: 1, 16: 16, 64: 64}}
    return {
        256: {1: 3, 16: 16, 64: 64},
        128: {256: 256},
        1024: {1: 1, 16: 16, 64: 64, 256: 256},
    }
