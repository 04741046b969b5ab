"""The sizes of a hostile run: how many of each attack, how many honest streams, and the bars."""

from dataclasses import dataclass

MODEL = "demo"
SEED = 13
# Bounds of the attacked processes in seconds, shorter than the defaults so that a run shows them at work.
HEAD_TIMEOUT, BODY_TIMEOUT = 5.0, 8.0

# Bars.
FIRST_TOKEN = 2.0  # times the quiet p99 of honest first tokens
MEMORY = 20 * 2**20  # bytes of RSS that a process may grow by


@dataclass(frozen=True, slots=True)
class Plan:
    """Numbers of attacks; seconds for what lasts."""

    raw: int  # malformed and odd requests, over all processes
    header_bytes: int  # that a client tries to send in one head
    idle: int
    slow: int
    hold: float  # how long idle and slow connections try to stay
    prompts: int
    prompt_bytes: int
    poison_rounds: int  # of all poison requests
    honest: int  # streams at a time
    quiet: float  # before the first attack
    at_once: int  # raw cases


FULL = Plan(
    raw=100_000,
    header_bytes=300 * 2**20,
    idle=1000,
    slow=200,
    hold=20.0,
    prompts=10,
    prompt_bytes=4 * 10**6,
    poison_rounds=10,
    honest=20,
    quiet=30.0,
    at_once=64,
)
QUICK = Plan(
    raw=3000,
    header_bytes=300 * 2**20,
    idle=1000,
    slow=200,
    hold=12.0,
    prompts=10,
    prompt_bytes=4 * 10**6,
    poison_rounds=2,
    honest=20,
    quiet=15.0,
    at_once=32,
)
# What the engines' answers of honest streams are like.
SCRIPT = {"length": 24, "first_delay": 0.2, "token_delay": 0.02}
ATTACKS = ("raw", "headers", "idle", "slow", "prompts", "poison")
