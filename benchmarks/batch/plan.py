"""The sizes of a run: how large the batch is, how much live traffic there is, how fast the engines are."""

from dataclasses import dataclass
from typing import Any

MODEL = "demo"
ENGINES, APIS = 2, 2
PACE = 0.02  # seconds a token
# An engine's first token takes 80 ms alone, and everything 5 % longer for each answer it makes already.
SCRIPT: dict[str, Any] = {
    "numbered": True,
    "length": 400,
    "first_delay": 0.08,
    "token_delay": PACE,
    "crowding": 0.05,
}
LIVE_TOKENS, BATCH_TOKENS = 48, 24
THINK = 1.5  # seconds on average that a live client pauses between two answers
KILLS = (0.6, 0.75)  # shares of the batch that are answered when the process that runs it is killed
MOST = 1.2  # times: the live requests' first tokens with the batch, by those without it


@dataclass(frozen=True, slots=True)
class Plan:
    """`quiet`: seconds without the batch, before it and after it."""

    requests: int
    clients: int
    quiet: float


FULL = Plan(requests=1000, clients=12, quiet=60.0)
QUICK = Plan(requests=200, clients=12, quiet=20.0)
