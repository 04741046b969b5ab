"""What one run does: how many of which process, how many streams, which faults and for how long."""

from dataclasses import dataclass
from typing import Any

MODEL = "demo"
WHOLE = 180.0  # seconds for an answer that is not streamed: it may start over more than once

# The faults, in the order of a round. Those of WORKER_FAULTS hit another worker each time.
WORKER_FAULTS = {
    "worker killed": "SIGKILL to agent and engine, started again",
    "engine killed": "SIGKILL to the engine alone; its agent starts it again",
    "engine stopped": "SIGSTOP to the engine, SIGCONT later",
    "worker stopped": "SIGSTOP to agent and engine, SIGCONT later",
    "worker drained": "SIGTERM to the agent, started again when it has ended",
    "worker cut off": "every packet from and to its network namespace dropped, later let through",
}
OTHER_FAULTS = {
    "controller killed": "SIGKILL to the controller, started again",
    "API killed": "SIGKILL to one of the API processes, started again; its streams counted apart",
    "API drained": "SIGTERM to one of the API processes, started again when it has ended",
}
FAULTS = WORKER_FAULTS | OTHER_FAULTS
# A round of the stored answers: the processes that make one, each killed.
STORED_FAULTS = ("API killed", "worker killed", "engine killed", "API killed")


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run. Seconds; `hold` is how long a fault lasts before it is mended."""

    workers: int
    apis: int
    streams: int
    tokens: tuple[int, int]  # of an answer: at least, at most
    token_delay: float
    warmup: float
    hold: dict[str, float]
    settle: float  # between a mending and the next fault
    back: float  # longest wait for a worker to be in rotation again
    silence: float  # a stream that says nothing this long has failed; a whole answer has WHOLE
    rounds: int = 1
    slow: float = 1.5  # a new request whose first token takes longer was harmed

    def script(self) -> dict[str, Any]:
        """The scripted engines' script."""
        return {
            "numbered": True,
            "length": self.tokens[1] - 20,  # so that some answers end by themselves
            "token_delay": self.token_delay,
            "first_delay": self.token_delay,
        }


def _hold(short: float, stall: float) -> dict[str, float]:
    """A killed process may come back soon; a silent one has to be silent until it is noticed."""
    silent = ("engine stopped", "worker stopped", "worker cut off")
    return {kind: stall if kind in silent else short for kind in FAULTS}


FULL = Plan(
    workers=4,
    apis=2,
    streams=200,
    tokens=(60, 220),
    token_delay=0.1,
    warmup=10.0,
    hold=_hold(5.0, 12.0),
    settle=5.0,
    back=60.0,
    silence=45.0,
    rounds=2,
)
QUICK = Plan(
    workers=3,
    apis=2,
    streams=48,
    tokens=(30, 60),
    token_delay=0.1,
    warmup=0.5,
    hold=_hold(0.5, 4.5),
    settle=0.3,
    back=20.0,
    silence=20.0,
)
QUICK_FAULTS = (
    "worker killed",
    "engine stopped",
    "worker drained",
    "worker cut off",
    "controller killed",
    "API killed",
    "API drained",
)
# Real vLLM on a CPU: a start takes a minute, a token some tens of milliseconds.
VLLM = Plan(
    workers=2,
    apis=1,
    streams=6,
    tokens=(24, 48),
    token_delay=0.0,
    warmup=5.0,
    hold=_hold(2.0, 12.0),
    settle=10.0,
    back=600.0,
    silence=180.0,
    slow=20.0,
)
VLLM_FAULTS = ("engine killed", "engine stopped", "worker drained", "controller killed")
